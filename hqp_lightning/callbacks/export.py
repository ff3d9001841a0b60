"""Int8Export: the last callback; what leaves it is an INT8 artifact within the budget, scored and timed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from hqp_lightning.callbacks.pruning import HQPPruning
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.export import DEFAULT_METHOD
from hqp_lightning.export.engines.rtx import CAPABILITIES
from hqp_lightning.export.options import as_tuple
from hqp_lightning.loop.checkpoint import carry_structure
from hqp_lightning.loop.losses import LossFn, loss_named
from hqp_lightning.loop.network import find_network
from hqp_lightning.loop.options import ExportOptions
from hqp_lightning.loop.portable import Portable
from hqp_lightning.loop.ranks import first_rank_only
from hqp_lightning.loop.trainer import check_trainer, load_validation, loose, monitored
from hqp_lightning.records import Budget, Report
from hqp_lightning.search.state import PruningState
from hqp_lightning.shipping.demands import check_folder, check_machine, own_budget, same_budget
from hqp_lightning.shipping.interrupted import keep_accepted
from hqp_lightning.shipping.keeping import kept, kept_search, save_pruned
from hqp_lightning.shipping.later import export_later, untrained
from hqp_lightning.shipping.publishing import publish_run
from hqp_lightning.shipping.ship import ship
from hqp_lightning.shipping.timing import processors
from hqp_lightning.shipping.trial import check_exportable

__all__ = ["Int8Export"]


class Int8Export(Portable):
    """When ``fit`` ends: calibrate, write a Q/DQ ONNX, score it by the user's validation loop, build and time engines.

    Beside `HQPPruning` it takes the budget from there and, if the INT8 score is over it, walks back to the
    previous accepted model. Alone it quantizes the model as trained, against that model's own score.

    It leaves ``model.int8.onnx``, ``model.onnx`` (float), ``model.dense.onnx``, ``pruned.ckpt`` (for `load_pruned`),
    ``manifest.json``, ``report.json`` and ``report.html`` in ``dirpath``, engines in ``dirpath/engines``, and the
    `Report` in ``.report``; its ``fastest_within_budget`` is the engine to deploy.

    Args:
        dirpath: folder for the artifacts; created.
        monitor: the metric, if there is no `HQPPruning`.
        max_drop: the budget, if there is no `HQPPruning`, whose budget holds for the INT8 file, too.
        mode: ``"max"`` or ``"min"``, if there is no `HQPPruning`.
        module: the network's attribute name in the LightningModule; found if it is the only one with parameters.
        calibration_batches: batches that set the ranges, the same for every model that is tried.
        calibration_data: their loader: ``"train"``, augmented but not scored, or ``"val"``.
        method: range estimator, one of ``"mse"``, ``"max"``, ``"percentile"``, ``"entropy"``.
        activation_type: ``"int8"``, symmetric, what TensorRT reads; or ``"uint8"``, with zero points, finer, for CPUs.
        outputs: names of those to write and to score, where the network returns several; by default all.
        layout: of pictures in the files, ``"NCHW"`` or, as cameras give them, ``"NHWC"``, which a CPU reads quicker.
        placement: ``"paying"``: layers for which INT8 wins nothing stay in float; so do others by NVIDIA's compiler
            with ``"compiled"``, by OpenVINO's time with ``"timed"`` (``docs/int8.md``); ``"all"``: all are quantized.
        max_float_layers: if the INT8 score is over budget, so many layers at most stay in float, those first that win
            most noise for the time that they cost, before the export walks back to an earlier model; 0 for none.
        quantize_hardswish: quantize the inputs of hard-swish, too.
        quantize_se: quantize the squeeze and the gate of squeeze-excite blocks, too.
        recovery_epochs: if INT8 is over the budget, or quantization costs a third of it, train for so many epochs with
            fake quantization, by a second ``fit``, and keep what has the better score (``docs/int8.md``); 0: never.
        recovery_lr_scale: its rate falls linearly to zero from this part, in (0, 1], of the highest one configured.
        holdout: loaders of data that no decision saw, or ``"test"`` for the datamodule's; scored and reported.
        engines: backends to score and time, by name; by default TensorRT with a GPU, and OpenVINO, or else onnxruntime.
        rtx: compute capabilities to compile engines for, without a GPU, with the extra ``rtx``; () for none.
        batch_size: images per timed call.
        threads: CPU threads of the timed engines; all by default.
        latency_runs: timed calls per engine.
        loss_fn: asked what the network receives of a batch where ``validation_step`` does not tell.

    Raises:
        ConfigurationError: a bad value; before training: an unwritable ``dirpath``, no budget, `HQPPruning` after it.
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
        outputs: Sequence[str] | None = None,
        layout: str = "NCHW",
        placement: str = "paying",
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
        loss_fn: LossFn | str | None = None,
    ) -> None:
        names = {f.name for f in fields(ExportOptions)}
        given = {name: value for name, value in locals().items() if name in names}
        self.dirpath, self.module = Path(dirpath), module
        self.monitor, self.max_drop, self.mode = monitor, max_drop, mode
        given |= {"engines": as_tuple(engines), "rtx": as_tuple(rtx), "loss_fn": loss_named(loss_fn)}
        self.options = ExportOptions(**{**given, "threads": processors() if threads is None else threads})
        self.report: Report | None = None
        self._left: tuple[Budget, PruningState | None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can't work before anything is trained."""
        if stage == "fit":
            check_trainer(trainer, self)
            same_budget(self._budget(trainer), self.monitor, self.max_drop, self.mode)
            if (pruning := self._pruning(trainer)) is not None:
                pruning.keeps = False  # it is done here
            check_machine(trainer, self.options)
            check_folder(self.dirpath)
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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A training that is broken off leaves its last accepted model, and how to export it."""
        if (pruning := self._pruning(trainer)) is not None:
            later = partial(self._later, trainer, pl_module)
            keep_accepted(trainer, pl_module, self.dirpath, pruning.budget, pruning.state, exception, later)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ship."""
        if loose(trainer).fast_dev_run:
            return
        network, pruning, budget = self.network_path(trainer), self._pruning(trainer), self._budget(trainer)
        search, self.report = pruning.state if pruning else self._left and self._left[1], None
        with kept(trainer, pl_module, self.dirpath, budget, search, self._later(trainer, pl_module)):
            load_validation(trainer)
            with first_rank_only(trainer, pl_module) as mine:
                if mine:
                    self.report = ship(trainer, pl_module, network, budget, search, self.dirpath, self.options)
            save_pruned(trainer, self.dirpath)
            if self.report is not None:
                publish_run(trainer, self.report, self.dirpath)

    def export(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        **settings: Any,
    ) -> Report:
        """Ship a model as it stands, without training: one from elsewhere, or what a failed export left behind.

        In a folder where an export failed, the budget, the dense model and the accepted ones are those of that run.

        Args:
            model: what is exported, from `load_pruned` for a pruned one; it holds what ships afterwards.
            train_dataloaders: for the calibration; these three as for ``Trainer.fit``.
            val_dataloaders: for the scores.
            datamodule: instead of loaders.
            **settings: of the Trainer that runs the validation, such as ``accelerator`` or ``precision``.

        Returns:
            The report, which is written to ``dirpath``, too.

        Raises:
            ConfigurationError: no budget, or the folder is that of another model.
        """
        self._left = kept_search(self.dirpath, model)
        try:
            untrained(self, settings).fit(model, train_dataloaders, val_dataloaders, datamodule)
        finally:
            self._left = None
        return cast(Report, self.report)

    def _later(self, trainer: Trainer, pl_module: LightningModule) -> str:
        given = {f.name: getattr(self.options, f.name) for f in fields(self.options)}
        given["module"] = self.network_path(trainer)
        given["threads"] = None if given["threads"] == processors() else given["threads"]
        return export_later(type(self), given, self.dirpath, trainer, pl_module)

    def _pruning(self, trainer: Trainer) -> HQPPruning | None:
        return next((c for c in loose(trainer).callbacks if isinstance(c, HQPPruning)), None)

    def network_path(self, trainer: Trainer) -> str | None:
        """The network's attribute name, this callback's or that of `HQPPruning`; None: to be found."""
        pruning = self._pruning(trainer)
        return self.module if pruning is None or self.module is not None else pruning.options.module

    def _budget(self, trainer: Trainer) -> Budget:
        if (pruning := self._pruning(trainer)) is not None:
            if loose(trainer).callbacks.index(pruning) > loose(trainer).callbacks.index(self):
                raise ConfigurationError(
                    "Int8Export must come after HQPPruning in Trainer(callbacks=[...]); beside one that "
                    "configure_callbacks brings, which Lightning puts last, it has to come from there, too."
                )
            return pruning.budget
        if self._left is not None:
            return self._left[0]
        return own_budget(self.monitor, self.max_drop, self.mode)
