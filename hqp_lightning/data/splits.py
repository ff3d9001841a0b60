"""What the recipes' data modules share: three seeded loaders over images and labels."""

from __future__ import annotations

from abc import ABC, abstractmethod

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as TF

from hqp_lightning.data.batches import Batch, ImageBatches, ImageSource, image_loader

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "SplitDataModule", "normalize"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SplitDataModule(L.LightningDataModule, ABC):
    """Training images, a decision split (``val_dataloader``) and a held-out split (``test_dataloader``).

    A subclass fills ``_sets`` with ``"train"``, ``"val"`` and ``"test"`` in ``setup``, and says with ``_augment`` and
    ``_prepare`` what becomes of a batch of them.

    Args:
        batch_size: images in a batch.
        seed: of the order and the augmentation.
        num_workers: loader processes.
    """

    def __init__(self, batch_size: int, seed: int, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self._sets: dict[str, tuple[ImageSource, Tensor]] = {}

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training images: in a seeded random order, augmented."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        """The images that decisions are taken on."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The held-out images, which no decision sees."""
        return self._loader("test")

    def _loader(self, name: str) -> DataLoader[Batch]:
        train = name == "train"
        dataset = ImageBatches(*self._sets[name], self._augment if train else self._prepare, seed=self.seed)
        return image_loader(
            dataset, batch_size=self.batch_size, train=train, seed=self.seed, num_workers=self.num_workers
        )

    @abstractmethod
    def _augment(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """A training batch, changed at random."""

    @abstractmethod
    def _prepare(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """A batch that is scored."""


def normalize(images: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> Tensor:
    """``(x / 255 - mean) / std`` of ``[B, 3, H, W]`` uint8."""
    return TF.normalize(TF.to_dtype(images, torch.float32, scale=True), list(mean), list(std))
