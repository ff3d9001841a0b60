#!/usr/bin/env bash
# torch: removing a parametrization from a deep copy of a layer breaks the original.
#
# One would guess: copy.deepcopy(layer) is independent of the layer; remove_parametrizations(copy, "weight") makes the
#   copy plain and leaves the layer alone.
# What happens: the copy has the very class that register_parametrization made for the layer, and
#   remove_parametrizations deletes the tensor's property from that class. The layer then has no attribute "weight",
#   and its next call raises AttributeError.
# Why it matters: to fold weight_norm or spectral_norm into a copy for an export, in the middle of a training, ends it.
#   What works: take the values, give the copy the class behind (type(copy).__bases__[0]), and register them there.
#
# Honours an active interpreter with this version, or makes one. Exits with 1 if the original survives.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python=python3
if ! $python -c "import torch; assert torch.__version__.startswith('2.14.1')" 2>/dev/null; then
    python3 -m venv "$folder/venv"; python="$folder/venv/bin/python"; $python -m pip install -q torch==2.14.1
fi
$python - <<'PYTHON'
import copy, sys
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

print("torch", torch.__version__)
layer = parametrizations.weight_norm(nn.Linear(2, 2))
twin = copy.deepcopy(layer)
parametrize.remove_parametrizations(twin, "weight")
print("the copy:", type(twin).__name__, twin(torch.ones(1, 2)).shape)
try:
    layer(torch.ones(1, 2))
except AttributeError as error:
    print("the original:", error)
    sys.exit(0)
print("the original works")
sys.exit(1)
PYTHON
