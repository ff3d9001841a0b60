"""The Python that makes an export later, from what a run left behind."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from hqp_lightning.loop.checkpoint import unsaved_arguments
from hqp_lightning.loop.trainer import loose
from hqp_lightning.shipping.keeping import PRUNED

__all__ = ["export_later", "untrained"]

_WRITTEN = (str, int, float, tuple, type(None))


def export_later(
    callback: type, given: Mapping[str, Any], dirpath: Path, trainer: Trainer, pl_module: LightningModule
) -> str:
    """Code for a new process: load the pruned model, and export it as this run would have.

    Args:
        callback: the class of the export.
        given: its arguments, as they hold; those that are not the defaults are written.
        dirpath: its folder.
        trainer: whose data and precision decide the scores.
        pl_module: the model; its class has to be importable.
    """
    defaults = {n: p.default for n, p in inspect.signature(callback).parameters.items()}
    changed = {n: v for n, v in given.items() if v != defaults[n]}
    arguments = [f"{n}={v!r}" if isinstance(v, _WRITTEN) else f"{n}={n}" for n, v in changed.items()]
    data = "datamodule=datamodule" if loose(trainer).datamodule is not None else "train_loader, val_loader"
    settings = [f"precision={trainer.precision!r}"] if str(trainer.precision) in ("bf16-true", "64-true") else []
    if trainer.limit_val_batches != 1.0:
        settings.append(f"limit_val_batches={trainer.limit_val_batches!r}")
    kind, module = callback.__name__, type(pl_module)
    source = module.__module__
    if source == "__main__" and (script := getattr(sys.modules[source], "__file__", None)):
        source = Path(script).stem  # a new process imports it by its name
    unsaved = unsaved_arguments(module, pl_module.hparams, getattr(pl_module, "_hparams_name", None))
    made_of = [f"{n}={n}" for n in unsaved]
    return "\n".join(
        [
            f"from hqp_lightning import {kind}, load_pruned",
            f"from {source} import {module.__qualname__.partition('.')[0]}",
            f"model = load_pruned({', '.join([module.__qualname__, repr(str(dirpath / PRUNED)), *made_of])})",
            f"{kind}({', '.join([repr(str(dirpath)), *arguments])}).export({', '.join(['model', data, *settings])})",
        ]
    )


def untrained(callback: Callback, settings: Mapping[str, Any]) -> Trainer:
    """A Trainer whose ``fit`` trains nothing: it has the callback make the export, with the user's settings."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    ours = {"max_epochs": 0, "callbacks": [callback], "fast_dev_run": False}
    return Trainer(**{"devices": 1, **quiet, **settings, **ours})
