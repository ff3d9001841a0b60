"""Imagenette (fastai): ten classes of ImageNet, 9,469 training and 3,925 validation photographs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder, Imagenette
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from hqp_lightning.data.batches import Batch, ImageBatches, ImageSource, image_loader, stratified_halves
from hqp_lightning.errors import ConfigurationError

__all__ = ["ImagenetteDataModule"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FOLDER, _SIDE = "imagenette2-160", 160
_RATIO = (3 / 4, 4 / 3)
_URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"


class ImagenetteDataModule(L.LightningDataModule):
    """Imagenette at 160 px, its validation part divided into a decision half and a held-out half.

    Images are cut to their central square and resized (bilinear, antialias) to ``image_size``, scaled to [0, 1] and
    normalised by ImageNet's mean and standard deviation. Training images get a random resized crop and a random flip.

    Args:
        root: folder that holds ``imagenette2-160``, as for ``torchvision.datasets.Imagenette(size="160px")``.
        image_size: side of the network's input, px.
        batch_size: images in a batch.
        seed: of the split, the order and the augmentation.
        decision_fraction: part of the validation images that decisions are taken on; the rest is held out.
        num_workers: loader processes.
        cache: decode every JPEG once into memory (uint8, 0.7 GB for training) instead of at every epoch.
        min_crop: smallest part of the area that a training crop shows, in (0, 1]. Short healing wants it large: small
            crops move the network away from what validation shows.
        download: let torchvision fetch the images (about 100 MB) when they are not there.

    Raises:
        ConfigurationError: no images under ``root``, a size below one, or a fraction outside (0, 1).
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int = 128,
        batch_size: int = 64,
        seed: int = 0,
        decision_fraction: float = 0.5,
        num_workers: int = 0,
        cache: bool = True,
        min_crop: float = 0.35,
        download: bool = False,
    ) -> None:
        super().__init__()
        if min(image_size, batch_size) < 1 or not 0.0 < decision_fraction < 1.0 or not 0.0 < min_crop <= 1.0:
            raise ConfigurationError(
                "image_size and batch_size must be at least 1, decision_fraction in (0, 1) and min_crop in (0, 1], got "
                f"{image_size=}, {batch_size=}, {decision_fraction=}, {min_crop=}"
            )
        self.min_crop = min_crop
        self.root, self.image_size, self.batch_size, self.seed = Path(root), image_size, batch_size, seed
        self.decision_fraction, self.num_workers, self.cache = decision_fraction, num_workers, cache
        self.download = download
        self._sets: dict[str, tuple[ImageSource, Tensor]] = {}
        if not download:
            self._require_images()

    @property
    def classes(self) -> tuple[str, ...]:
        """The first name of each class, in the order of the labels."""
        return tuple(names[0] for names in Imagenette(self.root, "val", size="160px").classes)

    @property
    def preprocessing(self) -> dict[str, object]:
        """What a caller of the deployed model must do: resize (px), then ``(x - mean) / std`` on [0, 1]."""
        return {"crop": "square", "resize": self.image_size, "mean": list(_MEAN), "std": list(_STD)}

    def prepare_data(self) -> None:
        """Download, where that was asked for."""
        if self.download and not (self.root / _FOLDER).is_dir():
            try:
                Imagenette(self.root, "train", size="160px", download=True)
            except (OSError, RuntimeError) as error:
                raise ConfigurationError(f"could not download Imagenette: {error}. {self._manual()}") from error

    def setup(self, stage: str | None = None) -> None:
        """Decode (with ``cache``) and divide the images."""
        if self._sets:
            return
        self._require_images()
        train, val = (self._folder(split) for split in ("train", "val"))
        decision, holdout = stratified_halves(val.targets, self.decision_fraction, self.seed)
        every = list(range(len(train)))
        for name, folder, part, side in (
            ("train", train, every, _SIDE),
            ("val", val, decision, self.image_size),
            ("test", val, holdout, self.image_size),
        ):
            source = _Decoder(folder, part, side)
            images = source[list(range(len(part)))] if self.cache else source
            self._sets[name] = images, torch.tensor(folder.targets)[part]

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training images: shuffled, cropped, flipped."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        """The decision half of the validation images."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The held-out half, which no decision sees."""
        return self._loader("test")

    def _loader(self, name: str) -> DataLoader[Batch]:
        train = name == "train"
        dataset = ImageBatches(*self._sets[name], self._augment if train else _normalize, seed=self.seed)
        return image_loader(
            dataset, batch_size=self.batch_size, train=train, seed=self.seed, num_workers=self.num_workers
        )

    def _augment(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return _normalize(random_resized_crops(images, self.image_size, generator, self.min_crop), None)

    def _folder(self, split: str) -> ImageFolder:
        return ImageFolder(str(self.root / _FOLDER / split))

    def _manual(self) -> str:
        return (
            f"Unpack {_URL} so that {self.root / _FOLDER} holds the folders train and val, or set download=true "
            "(data.download=true for the hqp command)"
        )

    def _require_images(self) -> None:
        missing = [s for s in ("train", "val") if not (self.root / _FOLDER / s).is_dir()]
        if missing:
            raise ConfigurationError(
                f"Imagenette not found: no {' and no '.join(missing)} folder in {self.root / _FOLDER}. {self._manual()}"
            )


class _Decoder:
    """Central squares of JPEG files, ``[B, 3, side, side]`` uint8, decoded when they are asked for."""

    def __init__(self, folder: ImageFolder, part: Sequence[int], side: int) -> None:
        self.files = [folder.samples[i][0] for i in part]
        self.load = folder.loader
        self.side = side

    def __getitem__(self, indices: list[int], /) -> Tensor:
        with ThreadPoolExecutor() as pool:  # the JPEG decoder lets go of the interpreter lock
            return torch.stack(list(pool.map(self._decode, indices)))

    def _decode(self, index: int) -> Tensor:
        image = TF.pil_to_tensor(self.load(self.files[index]))
        image = TF.center_crop(image, [min(image.shape[-2:])] * 2)
        return TF.resize(image, [self.side] * 2, interpolation=v2.InterpolationMode.BILINEAR, antialias=True)


def _normalize(images: Tensor, generator: torch.Generator | None) -> Tensor:
    return TF.normalize(TF.to_dtype(images, torch.float32, scale=True), list(_MEAN), list(_STD))


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
