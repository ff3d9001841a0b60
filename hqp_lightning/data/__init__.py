"""Data modules of the recipes."""

from hqp_lightning.data.digits import DigitsDataModule
from hqp_lightning.data.imagenette import ImagenetteDataModule

__all__ = ["DigitsDataModule", "ImagenetteDataModule"]
