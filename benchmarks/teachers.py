"""A teacher that needs more than a size and a choice of classes: for ``model.teachers``, see recipes/README.md.

Google's MobileNetV3-small for ImageNet, converted so that torch's padding is TensorFlow's: its kernels are turned by
180 degrees, and so the picture has to be; and it was trained on ``x / 127.5 - 1``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Turned"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # by which the data modules normalise


class Turned(nn.Module):
    """A network that sees the picture upside down, between -1 and 1.

    Args:
        net: takes ``[B, 3, H, W]`` in [-1, 1], turned by 180 degrees.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        mean, std = (torch.tensor(x)[:, None, None] for x in (_MEAN, _STD))
        self.register_buffer("shift", 2 * mean - 1)
        self.register_buffer("scale", 2 * std)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images that ImageNet's mean and standard deviation normalised."""
        logits: Tensor = self.net((images * self.scale + self.shift).flip(2, 3))
        return logits
