"""Pictures with a class for every pixel: what the data modules for segmentation share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hqp_lightning.data.batches import Batch, ImageBatches, image_loader
from hqp_lightning.data.splits import SplitDataModule

__all__ = ["MaskedSplitDataModule", "MaskSource"]


class MaskSource(Protocol):
    """Answers ``[B, H, W]`` class indices for a list of positions, and knows how many there are."""

    def __getitem__(self, indices: list[int], /) -> Tensor: ...

    def __len__(self) -> int: ...


class MaskedSplitDataModule(SplitDataModule):
    """As `SplitDataModule`, with masks in the place of labels; every second training image is flipped with its mask."""

    flip = True

    def _loader(self, name: str) -> DataLoader[Batch]:
        train = name == "train"
        images, masks = self._sets[name]
        dataset = _Masked(images, masks, self._prepare, seed=self.seed)
        dataset.flip = train and self.flip
        return image_loader(
            dataset, batch_size=self.batch_size, train=train, seed=self.seed, num_workers=self.num_workers
        )

    def _augment(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return self._prepare(images, generator)

    @abstractmethod
    def _prepare(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """A batch as the network takes it."""


class _Masked(ImageBatches):
    flip = False

    def __getitems__(self, indices: list[int]) -> Batch:
        images, masks = super().__getitems__(indices)
        if not self.flip:
            return images, masks
        flipped = torch.rand(len(indices), generator=self._generator) < 0.5
        return (
            torch.where(flipped[:, None, None, None], images.flip(3), images),
            torch.where(flipped[:, None, None], masks.flip(2), masks),
        )
