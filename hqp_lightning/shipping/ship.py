"""From accepted models to the artifact that ships: export, calibrate, score, walk back, time, report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from hqp_lightning import export
from hqp_lightning.board.arrays import cut
from hqp_lightning.core.verdict import score_drop
from hqp_lightning.errors import ExportError
from hqp_lightning.loop.options import ExportOptions
from hqp_lightning.loop.trainer import loose
from hqp_lightning.records import Budget, CompiledEngine, OnnxArtifact, Report, Verdict
from hqp_lightning.report import assemble, versions
from hqp_lightning.search.judging import still_learning
from hqp_lightning.search.state import Accepted, PruningState
from hqp_lightning.shipping.compiling import compile_for_others
from hqp_lightning.shipping.facts import channels, foretold, sensitivity, units, units_removed
from hqp_lightning.shipping.keeping import WALKED_BACK, save_pruned
from hqp_lightning.shipping.quantizing import Quantized, with_cost
from hqp_lightning.shipping.recovering import costs_too_much, recover_
from hqp_lightning.shipping.run import Exporting
from hqp_lightning.shipping.scoring import lent
from hqp_lightning.surgery import layer_macs, restore_, take
from hqp_lightning.surgery.copying import copied

__all__ = ["ExportOptions", "ship"]


def ship(
    trainer: Trainer,
    pl_module: LightningModule,
    path: str | None,
    budget: Budget,
    search: PruningState | None,
    dirpath: Path,
    options: ExportOptions,
) -> Report:
    """Export the best model whose INT8 form is within the budget; it is also what ``pl_module`` holds afterwards."""
    with torch.no_grad():
        return _Shipping(trainer, pl_module, path, budget, dirpath, options, search).run()


_REFERENCES = 8  # images whose logits travel with the model


@dataclass
class _Shipping(Exporting):
    search: PruningState | None

    def run(self) -> Report:
        dense, candidates = self._models()
        self.dense = dense
        reference = None if self.search is None else self.search.reference
        self.baseline = dense.score if reference is None else reference
        if self.search is not None and (learning := still_learning(self.search, self.budget)) is not None:
            self.notes.append(f"{learning[0].upper()}{learning[1:]}.")
        if self.search is not None and not self.search.records and (ended := self.search.search.ended) is not None:
            self.notes.append(f"No pruning step was made: {ended}.")
        if self.search is not None and (missed := self.search.missed) is not None:
            self.notes.append(f"{missed[0].upper()}{missed[1:]}.")
        dense_onnx, baseline = self.float_model(dense, "model.dense.onnx")
        shipped, float_onnx, made = self._walk(candidates)
        int8_onnx, verdict = made.artifact, made.verdict
        pruned = self.figures(shipped, float_onnx)
        holdout, held = self.measure_holdout(made.engine)
        int8 = replace(pruned, accuracy=verdict.measured, file_bytes=int8_onnx.file_bytes, holdout_accuracy=holdout)
        compiled = self._for_the_board(dense_onnx, int8_onnx, verdict)
        if self.options.activation_type != "int8":
            self.notes.append(
                f"Activations are {self.options.activation_type}: for CPUs, TensorRT does not read the file."
            )
        return assemble(
            self.budget,
            baseline,
            pruned,
            int8,
            samples=self.samples or None,
            holdout_samples=held or None,
            steps=self.search.records if self.search else (),
            engines=self.engines(dense_onnx, float_onnx, made),
            compiled=compiled,
            channels=channels(dense.snapshot.structure, shipped.snapshot.structure, self.prefix),
            sensitivity=sensitivity(self.search),
            group_notes=self.search.notes if self.search else (),
            quantization=made.layers,
            tensors=self.tensors(float_onnx, int8_onnx),
            notes=self.notes,
            versions=versions(),
            units_removed=units_removed(self.search, shipped.snapshot.structure, self.prefix),
            latency=foretold(self.search, self.network, int8_onnx, dense_onnx, self.dirpath),
            reference=self.baseline,
            units=units(self.search),
        )

    def _models(self) -> tuple[Accepted, list[Accepted]]:
        """The dense model, and what may ship: the newest accepted model first, the dense one last."""
        if (state := self.search) is not None:
            if state.dense is None:
                raise ExportError(
                    "no validation of the dense model gave a number during fit, so there is nothing to hold the INT8 "
                    "model to."
                )
            return state.dense, [*reversed(state.accepted), state.dense]
        with lent(self.pl_module):  # the training flags come back
            macs = sum(layer_macs(self.network.eval(), self.call())[0].values())
        params = sum(p.numel() for p in self.network.parameters())
        trained = Accepted(0, self.score(self.trainer.val_dataloaders), macs, params, take(self.pl_module))
        return trained, [trained]

    def _walk(self, candidates: list[Accepted]) -> tuple[Accepted, OnnxArtifact, Quantized]:
        """The first candidate whose INT8 form is within the budget; the least bad one if none is."""
        tried: list[tuple[float, Accepted]] = []
        for model in candidates:
            model, float_onnx, made = self._recovered(model, *self._attempt(model, self.options.max_float_layers))
            if made.verdict.kept:
                self._say_what_is_in_float(made)
                return model, float_onnx, made
            self._note(f"INT8 of {_name(model)} is over budget, walked back: {made.verdict.reason}.")
            if model.index and not tried:
                save_pruned(self.trainer, self.dirpath, alone=True, name=WALKED_BACK)
                self._note(f"{WALKED_BACK} is {_name(model)} in float, which is within it (docs/existing-trainer.md).")
            tried.append((made.verdict.drop, model))
            made.engine.close()
        self._note("No INT8 artifact is within the budget; the least bad one is kept as model.int8.onnx.")
        model = min(tried, key=lambda t: t[0])[1]
        return model, *self._attempt(model, 0)

    def _attempt(self, model: Accepted, max_float_layers: int) -> tuple[OnnxArtifact, Quantized]:
        """Export, calibrate, quantize and score one model."""
        restore_(model.snapshot, self.pl_module)
        float_onnx = self.write("model.onnx")
        return float_onnx, self.quantized(float_onnx, "model.int8.onnx", max_float_layers)

    def _recovered(
        self, model: Accepted, float_onnx: OnnxArtifact, made: Quantized
    ) -> tuple[Accepted, OnnxArtifact, Quantized]:
        """What a short training with fake quantization makes of a model, if that is better; else what was there."""
        epochs, before = self.options.recovery_epochs, made.verdict.measured
        if not epochs or made.verdict.kept and not costs_too_much(self.budget, model.score, before):
            return model, float_onnx, made
        made.engine.close()
        try:
            teacher, ranges = self._teacher(model), self.layer_ranges(float_onnx, made)
            run = self.trainer, self.pl_module, self.network, ranges, epochs, self.options.recovery_lr_scale, teacher
            recover_(*run)
            trained = replace(model, score=self.score(self.trainer.val_dataloaders), snapshot=take(self.pl_module))
            float_onnx, made = self._attempt(trained, self.options.max_float_layers)
        except Exception as error:  # the user's own code runs in there; what was there before still ships
            self._note(f"The recovery of {_name(model)} failed and was undone: {error}")
            return model, *self._attempt(model, self.options.max_float_layers)
        better = score_drop(before, made.verdict.measured, self.budget.mode) < 0
        self._note(
            f"Quantization of {_name(model)} cost too much (over budget, or a third of it): {self.budget.monitor} "
            f"{model.score:.4f} in float, {before:.4f} in INT8. After recovery_epochs={epochs} with fake quantization "
            f"{made.verdict.measured:.4f} in INT8, {'kept' if better else 'no better, undone'}."
        )
        if better:
            return trained, float_onnx, made
        made.engine.close()
        return model, *self._attempt(model, self.options.max_float_layers)

    def _teacher(self, model: Accepted) -> nn.Module:
        """A copy of the dense network; the LightningModule holds ``model`` again afterwards."""
        restore_(self.dense.snapshot, self.pl_module)
        try:
            return copied(self.network)
        finally:
            restore_(model.snapshot, self.pl_module)

    def _say_what_is_in_float(self, made: Quantized) -> None:
        if made.by_rule:
            self.notes.append(
                f"{len(made.by_rule)} of {len(made.layers)} quantizable nodes are left in float, where INT8 wins "
                "nothing: depthwise and thin layers (docs/int8.md)."
            )
        layers = sorted(made.layers, key=lambda q: q.noise, reverse=True)
        if left := [q for q in layers if q.precision == "float" and q.layer not in made.by_rule]:
            names = ", ".join(map(with_cost, left))
            self._note(f"Left in float to stay within the budget, noisiest layers first: {names}.")

    def _for_the_board(self, dense: OnnxArtifact, artifact: OnnxArtifact, verdict: Verdict) -> list[CompiledEngine]:
        """Forms, engines of other machines' GPUs, and the manifest that lists them."""
        files = export.board_files(self.dirpath / "model.onnx", artifact.path, self.options.activation_type)
        compiled, notes = compile_for_others(dense, self.dirpath, self.options)
        self.notes += notes
        images = cut(next(self.calibration()), 0, _REFERENCES)
        models = self.dirpath / "model.onnx", artifact.path
        references = export.write_references(self.dirpath / export.REFERENCES, images, *models)
        data = loose(self.trainer).datamodule
        export.write_manifest(
            self.dirpath / "manifest.json",
            artifact=artifact,
            classes=getattr(data, "classes", None),
            preprocessing=getattr(data, "preprocessing", None),
            accuracy=verdict.measured,
            calibration={
                "method": self.options.method,
                "activation_type": self.options.activation_type,
                "data": self.options.calibration_data,
                "batches": self.options.calibration_batches,
                "sha256": export.data_sha256(self.calibration()),
            },
            versions=versions(),
            monitor=self.budget.monitor,
            files=files,
            engines=compiled,
            references=references,
            layout=self.options.layout,
        )
        return compiled


def _name(model: Accepted) -> str:
    return f"step {model.index}" if model.index else "the dense model"
