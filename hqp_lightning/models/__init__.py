"""Models of the recipes."""

from hqp_lightning.models.classifier import ImageClassifier, lr_factor
from hqp_lightning.models.factory import build_network, load_weights_

__all__ = ["ImageClassifier", "build_network", "load_weights_", "lr_factor"]
