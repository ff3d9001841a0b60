"""Pruned INT8 engines from a PyTorch Lightning training loop, under one accuracy budget.

Two callbacks do the work::

    trainer = Trainer(callbacks=[HQPPruning(monitor="val_acc", max_drop=0.015), Int8Export("deploy/")])
    trainer.fit(model, datamodule)
"""

from hqp_lightning.callbacks import FisherAccumulator, HQPPruning, Int8Export, hqp_callbacks, load_pruned
from hqp_lightning.errors import ConfigurationError, ExportError, HQPError, SurgeryError

__all__ = [
    "ConfigurationError",
    "ExportError",
    "FisherAccumulator",
    "HQPError",
    "HQPPruning",
    "Int8Export",
    "SurgeryError",
    "hqp_callbacks",
    "load_pruned",
]
__version__ = "0.1.0"
