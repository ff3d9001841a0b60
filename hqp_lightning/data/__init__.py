"""Data modules of the recipes."""

from hqp_lightning.data.cifar10 import CIFAR10DataModule
from hqp_lightning.data.digit_canvases import DigitCanvasesDataModule
from hqp_lightning.data.digits import DigitsDataModule
from hqp_lightning.data.imagenet import ImageNetDataModule
from hqp_lightning.data.imagenette import ImagenetteDataModule
from hqp_lightning.data.masked_photos import MaskFolderDataModule
from hqp_lightning.data.photos import ImageFolderDataModule, count_classes

__all__ = [
    "CIFAR10DataModule",
    "DigitCanvasesDataModule",
    "DigitsDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "ImagenetteDataModule",
    "MaskFolderDataModule",
    "count_classes",
]
