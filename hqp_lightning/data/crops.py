"""Random crops and shifts of a whole batch, every image with its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

__all__ = ["random_resized_crops", "random_shifts"]

_RATIO = (3 / 4, 4 / 3)


def random_resized_crops(
    images: Tensor, size: int, generator: torch.Generator | None = None, min_area: float = 0.35
) -> Tensor:
    """Cut every image its own random rectangle, resize it to a square and flip every second one.

    Area and aspect ratio are drawn as in Inception's crop (torchvision's ``RandomResizedCrop``); a rectangle that
    is too long is cut to the image instead of drawn again, so that a batch takes a fixed number of random numbers.

    Args:
        images: ``[B, C, H, W]`` uint8.
        size: side of the results, px.
        generator: of all random numbers.
        min_area: smallest part of the area that a rectangle covers.

    Returns:
        ``[B, C, size, size]`` uint8.
    """
    n, _, height, width = images.shape
    draws = torch.rand(5, n, generator=generator).tolist()
    out = []
    for image, area, shape, top, left, flip in zip(images, *draws, strict=True):
        side = math.sqrt(height * width * (min_area + area * (1.0 - min_area)))
        ratio = math.exp(math.log(_RATIO[0]) + shape * math.log(_RATIO[1] / _RATIO[0]))
        h, w = (
            min(full, round(s)) for full, s in ((height, side / math.sqrt(ratio)), (width, side * math.sqrt(ratio)))
        )
        box = int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
        crop = TF.resized_crop(image, *box, [size] * 2, interpolation=v2.InterpolationMode.BILINEAR, antialias=True)
        out.append(TF.horizontal_flip(crop) if flip < 0.5 else crop)
    return torch.stack(out)


def random_shifts(
    images: Tensor, most: int, generator: torch.Generator | None = None, mode: str = "constant"
) -> Tensor:
    """Move every image its own number of px, up to ``most`` in both directions.

    Args:
        images: ``[B, C, H, W]``.
        most: px; 0 gives the images back.
        generator: of all random numbers.
        mode: what comes in at the border: ``"constant"`` zeros or ``"replicate"`` the edge.

    Returns:
        ``[B, C, H, W]``.
    """
    if not most:
        return images
    n, channels, height, width = images.shape
    padded = F.pad(images, (most,) * 4, mode=mode)
    top, left = torch.randint(2 * most + 1, (2, n, 1, 1, 1), generator=generator)
    rows = top + torch.arange(height).view(1, 1, -1, 1)
    columns = left + torch.arange(width).view(1, 1, 1, -1)
    return padded[torch.arange(n).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns]
