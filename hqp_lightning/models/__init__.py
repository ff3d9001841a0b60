"""Models of the recipes."""

from hqp_lightning.models.classifier import ImageClassifier
from hqp_lightning.models.factory import build_network, load_weights_
from hqp_lightning.models.schedules import lr_factor
from hqp_lightning.models.segmentation import ImageSegmenter, build_segmentation
from hqp_lightning.models.teachers import Teacher

__all__ = [
    "ImageClassifier",
    "ImageSegmenter",
    "Teacher",
    "build_network",
    "build_segmentation",
    "load_weights_",
    "lr_factor",
]
