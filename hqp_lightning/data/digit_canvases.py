"""scikit-learn's digits pasted on canvases, with a class for every pixel: a segmentation that needs no files."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from hqp_lightning.data.batches import stratified_parts
from hqp_lightning.data.masks import MaskedSplitDataModule
from hqp_lightning.errors import ConfigurationError

__all__ = ["DigitCanvasesDataModule"]

_MEAN, _STD = 0.25, 0.25
_INK = 0.35  # of the brightest: less belongs to the background
_DIGITS = 2


class DigitCanvasesDataModule(MaskedSplitDataModule):
    """Canvases with one or two handwritten digits of 44 to 64 px on a noisy grey ground; ten classes and background.

    Class 0 is the background, class ``d + 1`` the ink of the digit *d*. The digits are divided with a fixed seed,
    stratified by class, before they are pasted: no writing of the training is in the other parts.

    Args:
        image_size: side of a canvas, px.
        batch_size: canvases in a batch.
        seed: of the division, the canvases and the order.
        canvases: for training; a quarter of that are decided on (``val_dataloader``), as many held out.

    Raises:
        ConfigurationError: a canvas too small for a digit, or a number below one.

    Examples:
        >>> data = DigitCanvasesDataModule(image_size=48, batch_size=4, canvases=16)
        >>> data.setup()
        >>> images, masks = next(iter(data.val_dataloader()))
        >>> images.shape, masks.shape, masks.dtype
        (torch.Size([4, 3, 48, 48]), torch.Size([4, 48, 48]), torch.int64)
    """

    classes: tuple[str, ...] = ("background", *map(str, range(10)))
    flip = False  # a mirrored digit is none

    def __init__(self, image_size: int = 96, batch_size: int = 32, seed: int = 0, canvases: int = 512) -> None:
        super().__init__(batch_size, seed)
        if image_size < 32 or batch_size < 1 or canvases < 4:
            raise ConfigurationError(
                f"image_size must be at least 32, batch_size 1 and canvases 4, got {image_size=}, {batch_size=}, "
                f"{canvases=}"
            )
        self.image_size, self.canvases = image_size, canvases

    @property
    def preprocessing(self) -> dict[str, object]:
        """What a caller of the deployed model must do: resize (px), then ``(x - mean) / std`` on [0, 1]."""
        return {"resize": self.image_size, "mean": [_MEAN] * 3, "std": [_STD] * 3}

    def setup(self, stage: str | None = None) -> None:
        """Read and divide the digits, and paste them."""
        if self._sets:
            return
        digits = load_digits()
        labels = torch.as_tensor(digits.target, dtype=torch.long)
        inks = torch.as_tensor(digits.images, dtype=torch.float32) / 16.0
        parts = stratified_parts(labels.tolist(), self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        for name, part in parts.items():
            count = self.canvases if name == "train" else self.canvases // 4
            pasted = [self._paste(inks[part], labels[part], generator) for _ in range(count)]
            self._sets[name] = torch.stack([c for c, _ in pasted]), torch.stack([m for _, m in pasted])

    def _paste(self, inks: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def drawn(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        size = self.image_size
        canvas = 0.15 + 0.1 * torch.rand(size, size, generator=generator)
        mask = torch.zeros(size, size, dtype=torch.long)
        for _ in range(drawn(1, _DIGITS + 1)):
            index, side = drawn(0, len(labels)), drawn(min(44, size - 1), min(65, size))
            ink = F.interpolate(inks[index][None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]
            top, left = drawn(0, size - side + 1), drawn(0, size - side + 1)
            here = slice(top, top + side), slice(left, left + side)
            canvas[here] = torch.maximum(canvas[here], ink)
            mask[here] = torch.where(ink > _INK, labels[index] + 1, mask[here])
        return canvas.expand(3, size, size), mask

    def _prepare(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return (images - _MEAN) / _STD
