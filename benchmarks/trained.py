"""The networks of the benchmarks: torchvision's with ten classes, trained, dense or as Int8Export left them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn


def network(name: str, weights: str) -> nn.Module:
    """A network of torchvision with a state dict, or with the ``pruned.ckpt`` of the ``hqp`` command."""
    dense = getattr(torchvision.models, name)(num_classes=10)
    if Path(weights).suffix != ".ckpt":
        dense.load_state_dict(torch.load(weights, weights_only=True))
        return dense.eval()
    warnings.filterwarnings("ignore", ".*pkg_resources")
    from hqp_lightning import load_pruned
    from hqp_lightning.models import ImageClassifier

    return load_pruned(ImageClassifier(dense, num_classes=10), weights).net.eval()
