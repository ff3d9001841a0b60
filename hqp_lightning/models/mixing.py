"""Training on mixtures of two images."""

from __future__ import annotations

import math

from torch import Tensor
from torchvision.transforms import v2

from hqp_lightning.errors import ConfigurationError

__all__ = ["check_mixup", "mixed"]


def check_mixup(alpha: float, one_label: bool) -> None:
    """See that mixtures can be made.

    Args:
        alpha: of the distribution, see `mixed`.
        one_label: an image has one label, not one for every pixel.

    Raises:
        ConfigurationError: ``alpha`` is negative or no number, or labels are of pixels.
    """
    if not 0 <= alpha < math.inf:
        raise ConfigurationError(f"mixup={alpha} must be at least 0 (off), such as 0.2")
    if alpha and not one_label:
        raise ConfigurationError(f"mixup={alpha} mixes images that have one label each, not one for every pixel")


def mixed(images: Tensor, labels: Tensor, alpha: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Every image of a batch mixed with its neighbour, and its label likewise (H. Zhang et al., arXiv 1710.09412).

    One part ``p ~ Beta(alpha, alpha)`` is drawn for the batch: ``p * x[i] + (1 - p) * x[i - 1]``.

    Args:
        images: ``[B, C, H, W]``.
        labels: classes, ``[B]``.
        alpha: of the distribution; 0 leaves the batch as it is.
        num_classes: of the labels.

    Returns:
        Images, and labels as probabilities ``[B, num_classes]``.

    Examples:
        >>> import torch
        >>> x, y = mixed(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), torch.tensor([0, 1]), 0.2, 2)
        >>> bool(torch.allclose(x.flatten(), y[:, 1])), y.sum(1).tolist()
        (True, [1.0, 1.0])
    """
    if not alpha:
        return images, labels
    pair: tuple[Tensor, Tensor] = v2.MixUp(alpha=alpha, num_classes=num_classes)(images, labels)
    return pair
