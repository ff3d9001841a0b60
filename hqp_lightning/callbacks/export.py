"""Int8Export: the last callback; what leaves it is an INT8 artifact within the budget, scored and timed."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from hqp_lightning.callbacks.pruning import HQPPruning
from hqp_lightning.core.verdict import check_budget
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.export import DEFAULT_METHOD
from hqp_lightning.export.engines.rtx import CAPABILITIES
from hqp_lightning.loop.checkpoint import carry_structure
from hqp_lightning.loop.network import LossFn, find_network
from hqp_lightning.loop.options import ExportOptions
from hqp_lightning.loop.ranks import first_rank_only
from hqp_lightning.loop.trainer import check_trainer, load_validation, loose, monitored
from hqp_lightning.records import Budget, Report
from hqp_lightning.report import print_report, write_html, write_json
from hqp_lightning.shipping.ship import ship
from hqp_lightning.shipping.trial import check_exportable

__all__ = ["Int8Export"]

_log = logging.getLogger(__name__)


class Int8Export(Callback):
    """When ``fit`` ends: calibrate, write a Q/DQ ONNX, score it by the user's validation loop, build and time engines.

    Beside `HQPPruning` it takes the budget from there and, if the INT8 score is over it, walks back to the
    previous accepted model. Alone it quantizes the model as trained, against that model's own score.

    It leaves ``model.int8.onnx``, ``model.onnx`` (the same model in float), ``model.dense.onnx``, ``pruned.ckpt``
    (for `load_pruned`), ``manifest.json``, ``report.json`` and ``report.html`` in ``dirpath``, engines in
    ``dirpath/engines``, and the `Report` in ``.report``; its ``fastest_within_budget`` is the engine to deploy.

    Args:
        dirpath: folder for the artifacts; created.
        monitor: the metric, if there is no `HQPPruning`.
        max_drop: the budget, if there is no `HQPPruning`.
        mode: ``"max"`` or ``"min"``, if there is no `HQPPruning`.
        module: the network's attribute name in the LightningModule; found if it is the only one with parameters.
        calibration_batches: batches that set the ranges, the same for every model that is tried.
        calibration_data: of which loader they are, ``"train"`` or ``"val"``. Training batches are augmented, but scores
            are then of images that set no range.
        method: range estimator, one of ``"mse"``, ``"max"``, ``"percentile"``, ``"entropy"``.
        activation_type: ``"int8"``, symmetric, what TensorRT reads; or ``"uint8"``, with zero points, finer, where the
            model ships to a CPU (OpenVINO, onnxruntime).
        max_float_layers: if the INT8 score is over budget, so many layers at most stay in float, the noisiest first and
            as few as bring it within the budget, before the export walks back to an earlier model; 0 for none.
        quantize_hardswish: quantize the inputs of hard-swish, too; they stay float by default.
        quantize_se: quantize the squeeze and the gate of squeeze-excite blocks, too; they stay float by default.
        recovery_epochs: if quantization costs more than a third of the budget, train the model for so many epochs with
            fake quantization, by a second ``fit`` of the same module and data, and keep the result if its INT8 score is
            better (``docs/int8.md``); 0: never.
        recovery_lr_scale: the recovery's rate begins at this part of the highest one that ``configure_optimizers``
            gives, in (0, 1], and falls linearly to zero; schedulers are left out.
        holdout: loaders of data that no decision saw, or ``"test"`` for the datamodule's ``test_dataloader``; scored
            by ``validation_step`` and reported beside the budget.
        engines: backends to time, by name; by default TensorRT where there is a GPU, and OpenVINO, or onnxruntime
            where OpenVINO is not installed.
        rtx: compute capabilities of NVIDIA GPUs for which engines are compiled here, without a GPU, where TensorRT for
            RTX is installed (extra ``rtx``); () for none.
        batch_size: images per timed call.
        threads: CPU threads of the timed engines; all by default.
        latency_runs: timed calls per engine.
        loss_fn: needed for batches that are not ``(x, y)``, see `FisherAccumulator`.

    Raises:
        ConfigurationError: an argument out of range; before training: an unwritable ``dirpath``, no budget, or a
            position before `HQPPruning`.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str],
        monitor: str | None = None,
        max_drop: float | None = None,
        mode: str = "max",
        module: str | None = None,
        calibration_batches: int = 16,
        calibration_data: str = "train",
        method: str = DEFAULT_METHOD,
        activation_type: str = "int8",
        max_float_layers: int = 8,
        quantize_hardswish: bool = False,
        quantize_se: bool = False,
        recovery_epochs: int = 0,
        recovery_lr_scale: float = 0.1,
        holdout: Any = None,
        engines: Sequence[str] | None = None,
        rtx: Sequence[str] = CAPABILITIES,
        batch_size: int = 1,
        threads: int | None = None,
        latency_runs: int = 100,
        loss_fn: LossFn | None = None,
    ) -> None:
        self.dirpath, self.module = Path(dirpath), module
        self.monitor, self.max_drop, self.mode = monitor, max_drop, mode
        self.options = ExportOptions(
            calibration_batches=calibration_batches,
            calibration_data=calibration_data,
            method=method,
            activation_type=activation_type,
            max_float_layers=max_float_layers,
            quantize_hardswish=quantize_hardswish,
            quantize_se=quantize_se,
            recovery_epochs=recovery_epochs,
            recovery_lr_scale=recovery_lr_scale,
            holdout=holdout,
            engines=None if engines is None else tuple(engines),
            rtx=rtx if isinstance(rtx, str) else tuple(rtx),  # type: ignore[arg-type]
            batch_size=batch_size,
            threads=_processors() if threads is None else threads,
            latency_runs=latency_runs,
            loss_fn=loss_fn,
        )
        self.report: Report | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can't work before anything is trained."""
        if stage == "fit":
            check_trainer(trainer, self)
            self._budget(trainer)
            if self.options.recovery_epochs and trainer.world_size > 1:
                raise ConfigurationError(
                    f"recovery_epochs={self.options.recovery_epochs} trains on one device, and this run has "
                    f"{trainer.world_size}: use Trainer(devices=1), or leave it at 0."
                )
            _check_writable(self.dirpath)
            carry_structure(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a path that is not there; ``configure_model`` may have made the network only now."""
        find_network(pl_module, self.network_path(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a network that can't be written: the export is tried now, in a few seconds."""
        check_exportable(trainer, pl_module, self.network_path(trainer), self.options)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The monitor has to be there from the first validation on."""
        if trainer.state.fn == "fit":
            monitored(trainer, self._budget(trainer).monitor)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ship."""
        if loose(trainer).fast_dev_run:
            return
        load_validation(trainer)
        with first_rank_only(trainer, pl_module) as mine:
            if mine:
                network = self.network_path(trainer)
                pruning, budget = self._pruning(trainer), self._budget(trainer)
                search = pruning.state if pruning else None
                self.report = ship(trainer, pl_module, network, budget, search, self.dirpath, self.options)
        trainer.save_checkpoint(self.dirpath / "pruned.ckpt", weights_only=True)
        if self.report is None:
            return
        write_json(self.report, self.dirpath / "report.json")
        write_html(self.report, self.dirpath / "report.html")
        print_report(self.report)
        if not self.report.within_budget:
            _log.error("hqp: no INT8 artifact is within the budget; see the notes in %s", self.dirpath / "report.json")

    def _pruning(self, trainer: Trainer) -> HQPPruning | None:
        return next((c for c in loose(trainer).callbacks if isinstance(c, HQPPruning)), None)

    def network_path(self, trainer: Trainer) -> str | None:
        """The network's attribute name, this callback's or that of `HQPPruning`; None: to be found."""
        pruning = self._pruning(trainer)
        return self.module if pruning is None or self.module is not None else pruning.options.module

    def _budget(self, trainer: Trainer) -> Budget:
        pruning = self._pruning(trainer)
        if pruning is not None:
            if loose(trainer).callbacks.index(pruning) > loose(trainer).callbacks.index(self):
                raise ConfigurationError("Int8Export must come after HQPPruning in Trainer(callbacks=[...]).")
            return pruning.budget
        if self.monitor is None or self.max_drop is None:
            raise ConfigurationError(
                "Int8Export without HQPPruning needs a budget of its own: Int8Export(dirpath, monitor='val_acc', "
                "max_drop=0.01)."
            )
        return check_budget(Budget(self.max_drop, self.monitor, self.mode))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"dirpath={str(folder)!r} can't be written: {error}. Choose another folder."
        ) from error
