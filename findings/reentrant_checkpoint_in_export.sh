#!/usr/bin/env bash
# A reentrant gradient checkpoint is not transparent where there are no gradients.
#
# One would guess: checkpoint(f, x, use_reentrant=True) in eval mode under torch.no_grad() is f(x): there is nothing to
#   recompute for.
# What happens: torch.onnx.export (dynamo=False) ends with "unordered_map::at", which names neither module nor
#   checkpoint; and with gradients, torch.autograd.grad is refused. The form without re-entrance is exported, and
#   differentiated.
# Why it matters: networks that are trained with checkpoints (large ones: use_reentrant=True was the default for years)
#   can't be exported as they stand, and the error says nothing of the cause.
#
# Honours an active interpreter with these versions, or makes one. Exits with 1 if the export works, or says another thing.
set -euo pipefail
versions="torch==2.14.1 onnx onnxscript numpy"
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python=python3
if ! $python -c "import torch, onnx; assert torch.__version__.startswith('2.14.1')" 2>/dev/null; then
    python3 -m venv "$folder/venv"; python="$folder/venv/bin/python"; $python -m pip install -q $versions
fi
$python -W ignore - <<'PYTHON' 2>/dev/null
import io
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

class Network(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second, self.reentrant = nn.Linear(4, 4), nn.Linear(4, 2), reentrant

    def forward(self, x):
        return self.second(checkpoint(self.first, x, use_reentrant=self.reentrant))

def said(work):
    try:
        work()
    except Exception as error:
        return str(error).strip().splitlines()[0][:70]
    return "works"

found = {}
for reentrant in (False, True):
    network, x = Network(reentrant).eval(), torch.randn(1, 4)
    with torch.no_grad():
        export = said(lambda: torch.onnx.export(network, (x,), io.BytesIO(), dynamo=False))
    x.requires_grad_(True)
    found[reentrant] = export, said(lambda: torch.autograd.grad(network(x).sum(), [x]))
    print(f"torch {torch.__version__}, use_reentrant={reentrant}: export: {found[reentrant][0]}; grad: {found[reentrant][1]}")
whole = found[False] == ("works", "works")
raise SystemExit(0 if whole and "unordered_map::at" in found[True][0] and found[True][1] != "works" else 1)
PYTHON
