"""Photographs in a folder for each class: of the user, or of ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from hqp_lightning.data.batches import stratified_halves
from hqp_lightning.data.crops import random_resized_crops
from hqp_lightning.data.splits import IMAGENET_MEAN, IMAGENET_STD, SplitDataModule, normalize
from hqp_lightning.errors import ConfigurationError

__all__ = ["ImageFolderDataModule", "count_classes"]

_LAYOUT = "Expected one folder for each class: ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, or ROOT/CLASS/*.jpg"
_VALIDATION = ("val", "valid", "validation")


def count_classes(root: str | Path) -> int:
    """Number of class folders under ``root/train``, or under ``root`` where there is no such folder; 0 for none."""
    folder = Path(root) / "train"
    folder = folder if folder.is_dir() else Path(root)
    return sum(entry.is_dir() for entry in folder.iterdir()) if folder.is_dir() else 0


class ImageFolderDataModule(SplitDataModule):
    """Any folder of images with one folder a class, as ``torchvision.datasets.ImageFolder`` reads it.

    ``root/train/CLASS/*`` and ``root/val/CLASS/*``: the validation images are divided into a decision and a held-out
    part. ``root/CLASS/*`` alone: three fifths are for training, the rest is divided likewise. All divisions are
    stratified by class and repeat with the seed.

    Images are cut to a central square and resized (bilinear, antialias) to ``image_size``, scaled to [0, 1] and
    normalised by ImageNet's mean and standard deviation. Training images get a random resized crop and a random flip.

    Args:
        root: folder of the images.
        image_size: side of the network's input, px.
        batch_size: images in a batch.
        seed: of the division, the order and the augmentation.
        decision_fraction: part of the validation images that decisions are taken on; the rest is held out.
        num_workers: loader processes.
        cache: decode every image once into memory (uint8) instead of at every epoch.
        min_crop: smallest part of the area that a training crop shows, in (0, 1]. Short healing wants it large: small
            crops move the network away from what validation shows.
        crop_fraction: side of the central square as a part of the image's shorter side, in (0, 1]; torchvision's
            pretrained weights were scored with 224/256.

    Raises:
        ConfigurationError: no images under ``root``, a class that training or validation lacks, a size below one, a
            fraction outside its range; when it is met: a file that is no image.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int = 224,
        batch_size: int = 64,
        seed: int = 0,
        decision_fraction: float = 0.5,
        num_workers: int = 0,
        cache: bool = False,
        min_crop: float = 0.35,
        crop_fraction: float = 0.875,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        fractions = 0.0 < decision_fraction < 1.0 and 0.0 < min_crop <= 1.0 and 0.0 < crop_fraction <= 1.0
        if min(image_size, batch_size) < 1 or not fractions:
            raise ConfigurationError(
                "image_size and batch_size must be at least 1, decision_fraction in (0, 1), min_crop and crop_fraction "
                f"in (0, 1], got {image_size=}, {batch_size=}, {decision_fraction=}, {min_crop=}, {crop_fraction=}"
            )
        self.root, self.image_size, self.decision_fraction = Path(root), image_size, decision_fraction
        self.cache, self.min_crop, self.crop_fraction = cache, min_crop, crop_fraction
        # Larger than the input, so that training crops are cut from something.
        self.train_side = round(1.25 * image_size)
        self._require_images()

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class, in the order of the labels."""
        return tuple(str(name) for name in self._sources()[0].classes)

    @property
    def preprocessing(self) -> dict[str, object]:
        """What a caller of the deployed model must do: cut, resize (px), then ``(x - mean) / std`` on [0, 1]."""
        cut = {} if self.crop_fraction == 1.0 else {"central_square": self.crop_fraction}
        return {
            "crop": "square",
            **cut,
            "resize": self.image_size,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
        }

    def setup(self, stage: str | None = None) -> None:
        """Decode (with ``cache``) and divide the images."""
        if self._sets:
            return
        train, val = self._sources()
        if train.classes != val.classes:
            odd = sorted(set(map(str, train.classes)) ^ set(map(str, val.classes)))
            raise ConfigurationError(f"training and validation must have the same class folders; they differ in {odd}")
        if train is val:
            learn, rest = stratified_halves(train.targets, 0.6, self.seed)
        else:
            learn, rest = list(range(len(train))), list(range(len(val)))
        decision, holdout = stratified_halves([val.targets[i] for i in rest], self.decision_fraction, self.seed)
        for name, folder, part, side, fraction in (
            ("train", train, learn, self.train_side, 1.0),
            ("val", val, [rest[i] for i in decision], self.image_size, self.crop_fraction),
            ("test", val, [rest[i] for i in holdout], self.image_size, self.crop_fraction),
        ):
            source = _Decoder(folder, part, side, fraction)
            images = source[list(range(len(part)))] if self.cache else source
            self._sets[name] = images, torch.tensor(folder.targets)[part]

    def _augment(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return normalize(random_resized_crops(images, self.image_size, generator, self.min_crop))

    def _prepare(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return normalize(images)

    def _require_images(self) -> None:
        if not count_classes(self.root):
            raise ConfigurationError(f"no image classes in {self.root}. {_LAYOUT}")

    def _sources(self) -> tuple[ImageFolder, ImageFolder]:
        """Training and validation images; the same object where one folder is to be divided."""
        val = next((self.root / name for name in _VALIDATION if (self.root / name).is_dir()), None)
        train = self.root / "train"
        if train.is_dir() != (val is not None):
            raise ConfigurationError(
                f"{self.root} holds {'train' if val is None else val.name}, but not "
                f"{'val' if val is None else 'train'}; expected both, or class folders alone, which are then divided"
            )
        if val is None:
            both = _folder(self.root)
            return both, both
        return _folder(train), _folder(val)


def _folder(path: Path) -> ImageFolder:
    try:
        return ImageFolder(str(path))
    except OSError as error:
        raise ConfigurationError(f"no image classes in {path}: {error}. {_LAYOUT}") from error


class _Decoder:
    """Central squares of image files, ``[B, 3, side, side]`` uint8, decoded when they are asked for."""

    def __init__(self, folder: ImageFolder, part: Sequence[int], side: int, fraction: float) -> None:
        self.files = [folder.samples[i][0] for i in part]
        self.load = folder.loader
        self.side, self.fraction = side, fraction

    def __getitem__(self, indices: list[int], /) -> Tensor:
        with ThreadPoolExecutor() as pool:  # the JPEG decoder lets go of the interpreter lock
            return torch.stack(list(pool.map(self._decode, indices)))

    def _decode(self, index: int) -> Tensor:
        try:
            image = TF.pil_to_tensor(self.load(self.files[index]))
        except (UnidentifiedImageError, OSError) as error:
            raise ConfigurationError(f"{self.files[index]} can't be read as an image: {error}") from error
        image = TF.center_crop(image, [max(1, round(self.fraction * min(image.shape[-2:])))] * 2)
        return TF.resize(image, [self.side] * 2, interpolation=v2.InterpolationMode.BILINEAR, antialias=True)
