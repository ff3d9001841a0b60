"""Imagenette (fastai): ten classes of ImageNet, 9,469 training and 3,925 validation photographs."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import ImageFolder, Imagenette

from hqp_lightning.data.photos import ImageFolderDataModule
from hqp_lightning.errors import ConfigurationError

__all__ = ["ImagenetteDataModule"]

_FOLDER, _SIDE = "imagenette2-160", 160
_URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"


class ImagenetteDataModule(ImageFolderDataModule):
    """Imagenette at 160 px, its validation part divided into a decision half and a held-out half.

    Images are treated as `ImageFolderDataModule` says, with the whole central square.

    Args:
        root: folder that holds ``imagenette2-160``, as for ``torchvision.datasets.Imagenette(size="160px")``.
        image_size: side of the network's input, px.
        batch_size: images in a batch.
        seed: of the split, the order and the augmentation.
        decision_fraction: part of the validation images that decisions are taken on; the rest is held out.
        num_workers: loader processes.
        cache: decode every JPEG once into memory (uint8, 0.7 GB for training) instead of at every epoch.
        min_crop: smallest part of the area that a training crop shows, in (0, 1].
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
        self.download = download  # the base looks for the images, which may still have to come
        super().__init__(
            root, image_size, batch_size, seed, decision_fraction, num_workers, cache, min_crop, crop_fraction=1.0
        )
        self.train_side = _SIDE

    @property
    def classes(self) -> tuple[str, ...]:
        """The first name of each class, in the order of the labels."""
        return tuple(names[0] for names in Imagenette(self.root, "val", size="160px").classes)

    def prepare_data(self) -> None:
        """Download, where that was asked for."""
        if self.download and not (self.root / _FOLDER).is_dir():
            try:
                Imagenette(self.root, "train", size="160px", download=True)
            except (OSError, RuntimeError) as error:
                raise ConfigurationError(f"could not download Imagenette: {error}. {self._manual()}") from error

    def _sources(self) -> tuple[ImageFolder, ImageFolder]:
        self._require_folders()
        train, val = (ImageFolder(str(self.root / _FOLDER / split)) for split in ("train", "val"))
        return train, val

    def _manual(self) -> str:
        return (
            f"Unpack {_URL} so that {self.root / _FOLDER} holds the folders train and val, or set download=true "
            "(data.download=true for the hqp command)"
        )

    def _require_images(self) -> None:
        if not self.download:
            self._require_folders()

    def _require_folders(self) -> None:
        missing = [s for s in ("train", "val") if not (self.root / _FOLDER / s).is_dir()]
        if missing:
            raise ConfigurationError(
                f"Imagenette not found: no {' and no '.join(missing)} folder in {self.root / _FOLDER}. {self._manual()}"
            )
