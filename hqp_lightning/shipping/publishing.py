"""The report of a run: its files, the console, and the user's loggers where they take pictures or files."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from hqp_lightning.records import Report
from hqp_lightning.report import markdown_table, publish
from hqp_lightning.report.png import trajectory_png

__all__ = ["publish_run"]

_log = logging.getLogger(__name__)


def publish_run(trainer: Trainer, report: Report, folder: Path) -> None:
    """Publish a report, and hand it to every logger that takes pictures or files.

    A logger that fails costs a line, never the run.

    - TensorBoard: the trajectory under Images, the table of models under Text;
    - MLflow: ``report.html``, ``report.json`` and the trajectory among the run's artifacts, in ``hqp``;
    - Weights & Biases: the trajectory, and the page.

    Args:
        trainer: on the first rank.
        report: of its run.
        folder: gets ``report.html`` and ``report.json``.
    """
    publish(report, folder)
    for logger in trainer.loggers:
        give = next((g for kind, g in _GIVEN.items() if isinstance(logger, kind)), None)
        if give is None:
            continue
        try:
            give(logger, report, folder, trainer.global_step)
        except Exception as error:
            reason = str(error).strip().splitlines() or [""]
            _log.warning(
                "hqp: %s did not take the report (%s: %s); it is in %s",
                type(logger).__name__,
                type(error).__name__,
                reason[0],
                folder / "report.html",
            )


def _tensorboard(logger: Any, report: Report, folder: Path, step: int) -> None:
    logger.experiment.add_text("hqp/report", markdown_table(report), step)
    if report.steps:
        logger.experiment.add_image("hqp/trajectory", _pixels(report), step, dataformats="HWC")
    logger.experiment.flush()


def _mlflow(logger: Any, report: Report, folder: Path, step: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        drawing = Path(made) / "trajectory.png"
        drawing.write_bytes(trajectory_png(report))
        for path in (folder / "report.html", folder / "report.json", *([drawing] if report.steps else [])):
            logger.experiment.log_artifact(logger.run_id, str(path), "hqp")


def _wandb(logger: Any, report: Report, folder: Path, step: int) -> None:
    import wandb

    page = wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False)
    pictures = {"hqp/trajectory": wandb.Image(_pixels(report))} if report.steps else {}
    logger.log_metrics({"hqp/report": page, **pictures}, step)


def _pixels(report: Report) -> np.ndarray:
    """The trajectory, ``(height, width, 3)`` of uint8."""
    return np.asarray(Image.open(BytesIO(trajectory_png(report))).convert("RGB"))


_GIVEN: dict[type, Callable[[Any, Report, Path, int], None]] = {
    TensorBoardLogger: _tensorboard,
    MLFlowLogger: _mlflow,
    WandbLogger: _wandb,
}
