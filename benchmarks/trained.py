"""The networks of the benchmarks: torchvision's, trained, dense or pruned."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torchvision
from efficientnet_lite import PUBLISHED, published
from torch import nn


def network(name: str, weights: str) -> nn.Module:
    """A network of torchvision with a state dict, the ``pruned.ckpt`` of the ``hqp`` command, or a whole ``.pt``.

    ``published`` ones bring their weights.
    """
    if name in PUBLISHED:
        return published(name)
    if Path(weights).suffix == ".pt":  # written by this very benchmark
        return torch.load(weights, weights_only=False).eval()
    build = getattr(torchvision.models, name)
    if Path(weights).suffix != ".ckpt":
        state = torch.load(weights, weights_only=True)
        dense = build(num_classes=len(list(state.values())[-1]))
        dense.load_state_dict(state)
        return dense.eval()
    warnings.filterwarnings("ignore", ".*pkg_resources")
    from hqp_lightning import load_pruned
    from hqp_lightning.models import ImageClassifier

    return load_pruned(ImageClassifier(build(num_classes=10), num_classes=10), weights).net.eval()
