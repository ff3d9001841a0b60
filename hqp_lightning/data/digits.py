"""scikit-learn's handwritten digits as small colour images: real data that needs no network."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from hqp_lightning.data.batches import stratified_parts
from hqp_lightning.data.crops import random_shifts
from hqp_lightning.data.splits import SplitDataModule
from hqp_lightning.errors import ConfigurationError

__all__ = ["DigitsDataModule"]

# Of the 1,797 images scaled to [0, 1] and upsampled to 32 px.
_MEAN, _STD = 0.3053, 0.3236


class DigitsDataModule(SplitDataModule):
    """1,797 digits of 8x8 px in 10 classes, upsampled, in three equal channels, normalised, all in memory.

    They are divided with a fixed seed, stratified by class: 60 % for training, 20 % to take decisions on
    (``val_dataloader``), 20 % held out (``test_dataloader``).

    Args:
        image_size: side of the upsampled image, px (bilinear).
        batch_size: images in a batch.
        seed: of the split, the order and the shifts.
        max_shift: training images are shifted by up to so many px in both directions; 0 for no augmentation.

    Raises:
        ConfigurationError: an image or batch size below one, or a negative shift.

    Examples:
        >>> data = DigitsDataModule(image_size=16, batch_size=4)
        >>> data.setup()
        >>> images, labels = next(iter(data.val_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([4, 3, 16, 16]), torch.Size([4]))
    """

    classes: tuple[str, ...] = tuple(str(i) for i in range(10))

    def __init__(self, image_size: int = 32, batch_size: int = 64, seed: int = 0, max_shift: int = 2) -> None:
        super().__init__(batch_size, seed)
        if min(image_size, batch_size) < 1 or max_shift < 0:
            raise ConfigurationError(
                f"image_size and batch_size must be at least 1 and max_shift at least 0, got {image_size=}, "
                f"{batch_size=}, {max_shift=}"
            )
        self.image_size, self.max_shift = image_size, max_shift

    @property
    def preprocessing(self) -> dict[str, object]:
        """What a caller of the deployed model must do: resize (px), then ``(x - mean) / std`` on [0, 1]."""
        return {"resize": self.image_size, "mean": [_MEAN] * 3, "std": [_STD] * 3}

    def setup(self, stage: str | None = None) -> None:
        """Read, upsample and divide the digits."""
        if self._sets:
            return
        digits = load_digits()
        labels = torch.as_tensor(digits.target, dtype=torch.long)
        images = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 16.0
        images = F.interpolate(images, (self.image_size,) * 2, mode="bilinear", align_corners=False)
        images = ((images - _MEAN) / _STD).expand(-1, 3, -1, -1)
        parts = stratified_parts(labels.tolist(), self.seed)
        self._sets = {name: (images[part].contiguous(), labels[part]) for name, part in parts.items()}

    def _prepare(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return images

    def _augment(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        # The border of the digits is background, the same value everywhere, so repeating the edge invents nothing.
        return random_shifts(images, self.max_shift, generator, mode="replicate")
