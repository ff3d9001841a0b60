"""CIFAR-10, as torchvision reads it: 50,000 training and 10,000 test images of 32 px."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from hqp_lightning.data.batches import stratified_halves
from hqp_lightning.data.crops import random_shifts
from hqp_lightning.data.splits import IMAGENET_MEAN, IMAGENET_STD, SplitDataModule, normalize
from hqp_lightning.errors import ConfigurationError

__all__ = ["CIFAR10DataModule"]


class CIFAR10DataModule(SplitDataModule):
    """Ten classes in memory; the test images are divided into a decision half and a held-out half.

    Images are enlarged to ``image_size`` (bilinear), scaled to [0, 1] and normalised by ImageNet's mean and standard
    deviation, because the recipes start from ImageNet's weights. Training images are shifted (zeros come in) and
    every second one is flipped.

    Args:
        root: folder that holds ``cifar-10-batches-py``, as for ``torchvision.datasets.CIFAR10``.
        image_size: side of the network's input, px.
        batch_size: images in a batch.
        seed: of the division, the order and the augmentation.
        decision_fraction: part of the test images that decisions are taken on; the rest is held out.
        num_workers: loader processes.
        max_shift: training images are shifted by up to so many of their 32 px in both directions.
        download: let torchvision fetch the images (170 MB) when they are not there.

    Raises:
        ConfigurationError: a number out of range; in ``prepare_data`` and ``setup``: no images under ``root``.
    """

    classes: tuple[str, ...] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )

    def __init__(
        self,
        root: str | Path,
        image_size: int = 32,
        batch_size: int = 128,
        seed: int = 0,
        decision_fraction: float = 0.5,
        num_workers: int = 0,
        max_shift: int = 4,
        download: bool = False,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        if min(image_size, batch_size) < 1 or not 0.0 < decision_fraction < 1.0 or max_shift < 0:
            raise ConfigurationError(
                "image_size and batch_size must be at least 1, decision_fraction in (0, 1) and max_shift at least 0, "
                f"got {image_size=}, {batch_size=}, {decision_fraction=}, {max_shift=}"
            )
        self.root, self.image_size, self.decision_fraction = Path(root), image_size, decision_fraction
        self.max_shift, self.download = max_shift, download

    @property
    def preprocessing(self) -> dict[str, object]:
        """What a caller of the deployed model must do: resize (px), then ``(x - mean) / std`` on [0, 1]."""
        return {"resize": self.image_size, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}

    def prepare_data(self) -> None:
        """Download, where that was asked for."""
        if self.download:
            self._source(train=True, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Read and divide the images."""
        if self._sets:
            return
        train, test = self._source(train=True), self._source(train=False)
        decision, holdout = stratified_halves(test.targets, self.decision_fraction, self.seed)
        every = list(range(len(train)))
        for name, source, part in (("train", train, every), ("val", test, decision), ("test", test, holdout)):
            images = torch.from_numpy(source.data[part]).permute(0, 3, 1, 2).contiguous()
            self._sets[name] = images, torch.tensor(source.targets)[part]

    def _source(self, train: bool, download: bool = False) -> CIFAR10:
        try:
            return CIFAR10(str(self.root), train, download=download)
        except (OSError, RuntimeError) as error:
            raise ConfigurationError(
                f"CIFAR-10 not found in {self.root}: {error}. Unpack {CIFAR10.url} so that "
                f"{self.root / CIFAR10.base_folder} holds its batches, or set download=true (data.download=true for "
                "the hqp command)"
            ) from error

    def _augment(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        images = random_shifts(images, self.max_shift, generator)
        flip = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        return self._prepare(torch.where(flip, images.flip(-1), images), None)

    def _prepare(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        size = [self.image_size] * 2
        return normalize(TF.resize(images, size, interpolation=v2.InterpolationMode.BILINEAR, antialias=True))
