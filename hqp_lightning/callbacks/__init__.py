"""Lightning callbacks; thin: they gather from the Trainer, call, keep state and log."""

from hqp_lightning.callbacks.export import Int8Export
from hqp_lightning.callbacks.fisher import FisherAccumulator
from hqp_lightning.callbacks.preset import hqp_callbacks
from hqp_lightning.callbacks.pruning import HQPPruning
from hqp_lightning.loop.checkpoint import PrunedCheckpointMixin, load_pruned

__all__ = ["FisherAccumulator", "HQPPruning", "Int8Export", "PrunedCheckpointMixin", "hqp_callbacks", "load_pruned"]
