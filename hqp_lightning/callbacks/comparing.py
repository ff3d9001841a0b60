"""The paper's comparison: other methods on the dense model of a finished HQP run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from hqp_lightning import export
from hqp_lightning.callbacks.export import Int8Export
from hqp_lightning.callbacks.pruning import HQPPruning
from hqp_lightning.loop.ranks import first_rank_only
from hqp_lightning.loop.trainer import load_validation, loose
from hqp_lightning.records import MethodComparison, ModelFigures, OnnxArtifact, Report
from hqp_lightning.report import compare_methods
from hqp_lightning.search.state import Accepted
from hqp_lightning.shipping.run import Exporting
from hqp_lightning.shipping.timing import time_in_turn

__all__ = ["CompareMethods", "Exported", "last_of", "lift_budget_"]

Exported = tuple[Report | None, Path]
"""A finished run: its report, on the first rank, and the folder of its files."""

_CLOSE = 0.05  # of HQP's MACs: below it the accuracies are called those of equal MACs


def lift_budget_(pruning: HQPPruning) -> None:
    """Let a callback keep every step that leaves a score: for a method that only has to reach its MACs."""
    pruning.budget = replace(pruning.budget, max_drop=math.inf)


def last_of(pruning: HQPPruning) -> Accepted | None:
    """What a run of it had in the end, if it pruned anything."""
    return pruning.state.accepted[-1] if pruning.state.accepted else None


class CompareMethods(Callback):
    """When ``fit`` ends: put the pruning of this run, INT8 alone, and a finished HQP run side by side.

    The run that it ends prunes by another criterion down to HQP's MACs, after `lift_budget_`. What is quantized
    alone is the HQP run's dense ONNX file, and all files are timed in turn in this process.

    Args:
        report: of the HQP run.
        exported: what exported it; its folder holds the files, and its options are used again.
        dirpath: folder for the files of the other methods.
        pruned_by: name of this run's method in the table.
        others: further methods' names, and what their runs had in the end, or None if they pruned nothing.
        channels_alone: HQP again, with channels alone and priced by MACs, where its own run had more.

    Attributes:
        comparison: the result, on the first rank.
    """

    def __init__(
        self,
        report: Report,
        exported: Int8Export,
        dirpath: Path,
        pruned_by: str = "magnitude",
        others: Mapping[str, Accepted | None] | None = None,
        channels_alone: Exported | None = None,
    ) -> None:
        self.report, self.exported, self.dirpath, self.pruned_by = report, exported, dirpath, pruned_by
        self.others, self.channels_alone = others or {}, channels_alone
        self.comparison: MethodComparison | None = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Quantize, score, time, compare."""
        pruning = next((c for c in loose(trainer).callbacks if isinstance(c, HQPPruning)), None)
        pruned = {self.pruned_by: last_of(pruning) if pruning is not None else None, **self.others}
        path = self.exported.network_path(trainer)
        load_validation(trainer)
        with first_rank_only(trainer, pl_module) as mine, torch.no_grad():
            if mine:
                run = trainer, pl_module, path, self.report.budget, self.dirpath, self.exported.options
                of = self.report, self.exported.dirpath, pruned, self.channels_alone
                self.comparison = _Comparing(*run, *of).run()


@dataclass
class _Comparing(Exporting):
    report: Report
    deploy: Path
    pruned: Mapping[str, Accepted | None]
    channels_alone: Exported | None

    def run(self) -> MethodComparison:
        report = self.report
        engine_of, dense_onnx = {"dense": ("dense", "fp32")}, export.describe(self.deploy / "model.dense.onnx")
        figures, wanted = {"dense": report.baseline}, {engine_of["dense"]: dense_onnx}

        def add(method: str, row: ModelFigures, engine: tuple[str, str], artifact: OnnxArtifact) -> None:
            figures[method], engine_of[method], wanted[engine] = row, engine, artifact

        if report.control is not None:
            figures["dense, trained as long"] = report.control
        add("INT8 only", *self._int8_only(dense_onnx))
        for name, accepted in self.pruned.items():
            if accepted is not None:
                short = name.lower().replace(" ", "_")
                artifact, row = self.float_model(accepted, f"{short}.onnx")
                add(f"pruned by {name}", row, (short, "fp32"), artifact)
            self._note_macs(name, figures.get(f"pruned by {name}"))
        other, folder = self.channels_alone or (None, self.deploy)
        if other is not None:
            add("channels only", other.int8, ("channels", "int8"), export.describe(folder / "model.int8.onnx"))
            self.notes.append("Channels only is HQP under the same budget, with channels alone and priced by MACs.")
        add("HQP", report.int8, ("hqp", "int8"), export.describe(self.deploy / "model.int8.onnx"))
        timed = [time_in_turn(b, wanted, self.sample(), self.dirpath, self.options) for b in self.backends]
        return compare_methods(report.budget, figures, sum(timed, []), engine_of, self.notes, report.reference)

    def _int8_only(self, dense_onnx: OnnxArtifact) -> tuple[ModelFigures, tuple[str, str], OnnxArtifact]:
        self.baseline = self.report.held_to
        made = self.quantized(dense_onnx, "int8_only.onnx", self.options.max_float_layers)
        holdout, _ = self.measure_holdout(made.engine)
        made.engine.close()
        figures = replace(
            self.report.baseline,
            accuracy=made.verdict.measured,
            file_bytes=made.artifact.file_bytes,
            holdout_accuracy=holdout,
        )
        return figures, ("dense", "int8"), made.artifact

    def _note_macs(self, name: str, pruned: ModelFigures | None) -> None:
        wanted = self.report.int8.macs
        if pruned is None:
            self.notes.append(f"HQP's model is dense, or {name} pruned nothing: there is no such row.")
        elif abs(pruned.macs / wanted - 1) > _CLOSE:
            self.notes.append(
                f"Pruning by {name} ended at {pruned.macs / wanted:.2f} times HQP's MACs: whole tiles of "
                "channels, or too few epochs."
            )
