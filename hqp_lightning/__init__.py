"""Pruned INT8 engines from a PyTorch Lightning training loop, under one accuracy budget.

Two callbacks do the work:

    trainer = Trainer(callbacks=[HQPPruning(monitor="val_acc", max_drop=0.015), Int8Export("deploy/")])
    trainer.fit(model, datamodule)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hqp_lightning.callbacks import (
        FisherAccumulator,
        HQPPruning,
        Int8Export,
        PrunedCheckpointMixin,
        hqp_callbacks,
        load_pruned,
    )
    from hqp_lightning.errors import ConfigurationError, ExportError, HQPError, SurgeryError
    from hqp_lightning.looking import look

__all__ = [
    "ConfigurationError",
    "ExportError",
    "FisherAccumulator",
    "HQPError",
    "HQPPruning",
    "Int8Export",
    "PrunedCheckpointMixin",
    "SurgeryError",
    "hqp_callbacks",
    "load_pruned",
    "look",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: ``hqp-engine`` runs where neither torch nor Lightning is."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "errors" if name.endswith("Error") else "looking" if name == "look" else "callbacks"
    return getattr(import_module(f"{__name__}.{home}"), name)
