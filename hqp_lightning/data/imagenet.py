"""ImageNet (ILSVRC 2012), as torchvision reads it."""

from __future__ import annotations

from torchvision.datasets import ImageFolder, ImageNet

from hqp_lightning.data.photos import ImageFolderDataModule
from hqp_lightning.errors import ConfigurationError

__all__ = ["ImageNetDataModule"]


class ImageNetDataModule(ImageFolderDataModule):
    """1,000 classes; the 50,000 validation images are divided into a decision half and a held-out half.

    ``root`` is that of ``torchvision.datasets.ImageNet``: either the unpacked folders ``train`` and ``val`` with
    ``meta.bin``, or the three archives, which torchvision unpacks once. The labels are in the order of torchvision's
    pretrained weights. Arguments and preprocessing are those of `ImageFolderDataModule`.

    Raises:
        ConfigurationError: as for `ImageFolderDataModule`; in ``prepare_data``: images and archives missing.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """The first name of each class, in the order of the labels."""
        return tuple(names[0] for names in self._sources()[1].classes)

    def prepare_data(self) -> None:
        """Unpack the archives, where that was not done yet."""
        self._sources()

    def _require_images(self) -> None:
        if not self.root.is_dir():
            raise ConfigurationError(f"no folder {self.root}. {self._manual()}")

    def _sources(self) -> tuple[ImageFolder, ImageFolder]:
        try:
            train, val = (ImageNet(str(self.root), split) for split in ("train", "val"))
        except (OSError, RuntimeError) as error:
            raise ConfigurationError(f"ImageNet not found in {self.root}: {error}. {self._manual()}") from error
        return train, val

    def _manual(self) -> str:
        return (
            "It can't be downloaded without an account: fetch ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar "
            f"and ILSVRC2012_img_val.tar from https://image-net.org/download-images and put them in {self.root}; they "
            "are unpacked at the first run"
        )
