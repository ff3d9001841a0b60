#!/usr/bin/env bash
# torch.compile takes the option "freezing" and does not freeze.
#
# One would guess: torch.compile(net, options={"freezing": True}) makes constants of the weights, folds BatchNorm into
#   the convolution before it and lays the kernels out once, as torch._inductor.config.freezing = True does.
#   torch._inductor.list_options() names the key, which torch.compile's documentation refers to; a key that does not
#   exist is an error.
# What happens: nothing of that. The option is in force while Inductor compiles, but whether weights become inputs of the
#   graph was decided before, by Dynamo, which reads the global setting: nothing is left to fold. No error, no warning;
#   the answers are right. Seen from outside by a weight that is doubled after the first call: the program of the option
#   follows it, that of the global setting does not.
# Why it matters: who compiles a trained network for inference on a processor, such as a teacher, pays for unfolded
#   BatchNorms and a fresh layout of all kernels in every call, and measures that freezing is worth nothing.
#
# Honours an active interpreter with this version, or makes one. Needs a C++ compiler. Exits with 1 if any of it changes.
set -euo pipefail
versions="torch==2.14.1"
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python=python3
if ! $python -c "
from importlib.metadata import version as v
assert v('torch').startswith('2.14.1')" 2>/dev/null; then
    python3 -m venv "$folder/venv"; python="$folder/venv/bin/python"; $python -m pip install -q $versions
fi
cat > "$folder/freeze.py" <<'PYTHON'
import sys
import torch
import torch._inductor
import torch._inductor.config
from torch import nn

images = torch.ones(2, 3, 9, 9)


def follows(options, setting):
    """Whether the program sees a weight that changes after the first call."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval().requires_grad_(False)
    with torch._inductor.config.patch(freezing=setting), torch.no_grad():
        program = torch.compile(net, options=options)
        before = program(images).clone()
        net[1].weight.mul_(2)
        return bool((program(images) - before).abs().max() > 0.1)


print(f"torch {torch.__version__}; among list_options(): {'freezing' in torch._inductor.list_options()}")
try:
    torch.compile(nn.ReLU(), options={"freezin": True})
    unknown = "taken"
except RuntimeError as error:
    unknown = "refused"
print(f"an option of another name: {unknown}")
found = {"neither": follows(None, False), 'options={"freezing": True}': follows({"freezing": True}, False)}
found["config.freezing = True"] = follows(None, True)
for name, seen in found.items():
    print(f"{name:28s} {'weights are inputs' if seen else 'weights are constants'}")
listed = "freezing" in torch._inductor.list_options()
sys.exit(0 if listed and unknown == "refused" and list(found.values()) == [True, True, False] else 1)
PYTHON
$python "$folder/freeze.py" 2>/dev/null
