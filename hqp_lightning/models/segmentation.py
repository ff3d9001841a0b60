"""Segmentation networks of torchvision, LR-ASPP on MobileNetV3-small among them, and a LightningModule for them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.models.segmentation import LRASPP

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.models.classifier import ImageClassifier
from hqp_lightning.models.factory import finished_

__all__ = ["UNLABELLED", "ImageSegmenter", "build_segmentation"]

UNLABELLED = 255
"""The class of pixels that nobody labelled: neither learnt nor scored."""

_SMALL = "lraspp_mobilenet_v3_small"


class ImageSegmenter(ImageClassifier):
    """Cross-entropy training of a segmentation network; logs ``val_loss``, ``val_miou``, ``test_loss``, ``test_miou``.

    The score is the mean over the classes of intersection over union, counted over the pixels of all images
    (torchmetrics' ``MulticlassJaccardIndex``). The arguments are those of `ImageClassifier`; ``net`` returns a dict
    with the logits ``[B, num_classes, H, W]`` as ``out``, labels are ``[B, H, W]``, 255 where there are none.
    """

    score_name = "miou"

    @staticmethod
    def _logits(answer: Any) -> Tensor:
        logits: Tensor = answer["out"]
        return logits

    def _metric(self, num_classes: int) -> Metric:
        return MulticlassJaccardIndex(num_classes, ignore_index=UNLABELLED)

    def _loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(logits, labels, ignore_index=UNLABELLED, label_smoothing=label_smoothing)


def build_segmentation(
    name: str,
    num_classes: int,
    weights: str | None = None,
    checkpoint: str | Path | None = None,
    bn_momentum: float | None = None,
) -> nn.Module:
    """Build a segmentation network; it returns a dict with the logits as ``out``.

    Args:
        name: as in ``torchvision.models.list_models(torchvision.models.segmentation)``, or
            ``"lraspp_mobilenet_v3_small"``, which torchvision lacks.
        num_classes: channels of ``out``, background included.
        weights: torchvision's pretrained weights of the backbone, for example ``"DEFAULT"`` (downloaded once).
        checkpoint: file with a state dict of exactly this network, loaded last.
        bn_momentum: of every BatchNorm, see `build_network`.

    Raises:
        ConfigurationError: an unknown name, weights that can't be had, or a checkpoint that does not fit.

    Examples:
        >>> net = build_segmentation("lraspp_mobilenet_v3_small", num_classes=3).eval()
        >>> {k: tuple(v.shape) for k, v in net(__import__("torch").zeros(1, 3, 64, 64)).items()}
        {'out': (1, 3, 64, 64)}
    """
    known = torchvision.models.list_models(module=torchvision.models.segmentation)
    if name not in (_SMALL, *known) or num_classes < 1:
        raise ConfigurationError(
            f"no segmentation network {name!r} with {num_classes} classes; there are {', '.join((_SMALL, *known))}"
        )
    try:
        if name == _SMALL:
            net: nn.Module = _lraspp_small(num_classes, weights)
        else:
            settings = {"weights": None, "weights_backbone": weights, "num_classes": num_classes}
            net = torchvision.models.get_model(name, **settings)
    except (ValueError, KeyError, OSError) as error:  # urllib's errors are of the last kind
        raise ConfigurationError(
            f"no weights {weights!r} of the backbone of {name}: {error}; leave them out with model.net.weights=null"
        ) from error
    return finished_(net, checkpoint, bn_momentum)


class _Stages(nn.Module):
    """A backbone that returns what two of its layers compute."""

    def __init__(self, layers: nn.Sequential, low: int, high: int) -> None:
        super().__init__()
        self.layers, self.low, self.high = layers[: high + 1], low, high

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: OrderedDict[str, Tensor] = OrderedDict()
        for k, layer in enumerate(self.layers):
            x = layer(x)
            if k == self.low:
                found["low"] = x
        found["high"] = x
        return found


def _lraspp_small(num_classes: int, weights: str | None) -> LRASPP:
    """As torchvision's for MobileNetV3-large: strides of 8 and 16, the last stage dilated."""
    layers = torchvision.models.mobilenet_v3_small(weights=weights, dilated=True).features
    strided = [k for k, layer in enumerate(layers) if getattr(layer, "_is_cn", False)]
    stages = [0, *strided, len(layers) - 1]
    low, high = stages[-4], stages[-1]
    backbone = _Stages(layers, low, high)
    return LRASPP(backbone, layers[low].out_channels, layers[high].out_channels, num_classes)
