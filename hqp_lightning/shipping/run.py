"""What every export of a run works with: the run's data, its validation loop, and the engines of this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from hqp_lightning import export
from hqp_lightning.board.arrays import Arrays, bundle, cut
from hqp_lightning.core.calibration import Range
from hqp_lightning.core.calls import Call
from hqp_lightning.core.verdict import judge
from hqp_lightning.errors import ExportError
from hqp_lightning.export.departures import compare_files
from hqp_lightning.export.engines import Engine, OnnxRuntimeBackend
from hqp_lightning.loop.batches import batches, prepared
from hqp_lightning.loop.calls import Receiver
from hqp_lightning.loop.exportable import Exportable, exportable, laid_out, on_cpu, one_sample
from hqp_lightning.loop.network import find_network
from hqp_lightning.loop.options import ExportOptions
from hqp_lightning.loop.parts import Way
from hqp_lightning.loop.untouched import fixed_seed
from hqp_lightning.records import Budget, ComparedTensor, EngineReport, ModelFigures, OnnxArtifact, Verdict
from hqp_lightning.search.state import Accepted
from hqp_lightning.shipping.quantizing import Quantized, quantize_within
from hqp_lightning.shipping.scoring import holdout_loaders, score
from hqp_lightning.shipping.standing_in import counting, running_on
from hqp_lightning.shipping.timing import build, time_engines, usable_backends
from hqp_lightning.shipping.trial import CALIBRATION_SEED
from hqp_lightning.surgery import restore_

__all__ = ["Exporting"]

_COMPARED = 8
_log = logging.getLogger(__name__)


@dataclass
class Exporting:
    """A run whose training is over.

    Args:
        trainer: with its training and validation loaders.
        pl_module: the model; `float_model` changes what it holds.
        path: the network's attribute name in it, see `find_network`.
        budget: what INT8 scores are held to.
        dirpath: folder of the files.
        options: of `hqp_lightning.callbacks.Int8Export`.
    """

    trainer: Trainer
    pl_module: LightningModule
    path: str | None
    budget: Budget
    dirpath: Path
    options: ExportOptions

    def __post_init__(self) -> None:
        self.prefix, self.network = find_network(self.pl_module, self.path)
        self.backends, self.notes = usable_backends(self.options.engines, self.options.activation_type)
        for note in self.notes:
            _log.info("hqp: %s", note)
        self.holdout = holdout_loaders(self.trainer, self.options.holdout)
        self.baseline, self.samples = float("nan"), 0
        self._received: tuple[Call, Way, Exportable] | None = None

    def float_model(self, model: Accepted, name: str) -> tuple[OnnxArtifact, ModelFigures]:
        """Put a model in place, write it as ONNX, and score it on the held-out data."""
        restore_(model.snapshot, self.pl_module)
        artifact = self.write(name)
        return artifact, self.figures(model, artifact)

    def write(self, name: str) -> OnnxArtifact:
        """Write what the LightningModule holds, computed in float32, as ONNX."""
        made = self.exportable()
        return export.export_onnx(
            made.module, self.example(), self.dirpath / name, inputs=made.inputs, outputs=made.outputs
        )

    def exportable(self) -> Exportable:
        """The network as a function of tensors in float32; a copy."""
        return exportable(self.network, self.call(), self.options.outputs, self.options.layout)

    def layer_ranges(self, float_onnx: OnnxArtifact, made: Quantized) -> dict[str, Range]:
        """Layer name in the network, as it is now, to the range of its input in the INT8 file."""
        of = self.exportable()
        found = export.input_ranges(float_onnx.path, made.artifact.path, of.module, of.example, made.ranges)
        return {name.removeprefix(of.prefix): r for name, r in found.items()}

    def figures(self, model: Accepted, artifact: OnnxArtifact) -> ModelFigures:
        """Figures of a float model, which the LightningModule holds."""
        holdout = self.score(self.holdout) if self.holdout is not None else None
        return ModelFigures(model.score, model.macs, model.params, artifact.file_bytes, holdout)

    def quantized(self, float_onnx: OnnxArtifact, name: str, max_float_layers: int) -> Quantized:
        """The INT8 form of a float model, on its engine, scored and judged."""
        path = self.dirpath / name
        made = quantize_within(float_onnx, self.calibration, self.measure, path, self.options, max_float_layers)
        if made.warning is not None and made.warning not in self.notes:
            self.notes.append(made.warning)
        return made

    def measure(self, artifact: OnnxArtifact) -> tuple[Engine, Verdict]:
        """An engine of an INT8 file, and what its score on the decision data means."""
        engine = self._build(artifact)
        try:
            with counting(self.pl_module) as sizes:
                measured = self.score_of(engine)
        except BaseException:
            engine.close()
            raise
        self.samples = sum(sizes)
        return engine, judge(self.baseline, measured, self.budget)

    def score_of(self, engine: Engine) -> float:
        """Score of an engine on the decision data."""
        with self.running_on(engine):
            return self.score(self.trainer.val_dataloaders)

    def engines(self, dense: OnnxArtifact, pruned: OnnxArtifact, int8: Quantized) -> list[EngineReport]:
        """Every engine timed, those of the pruned model scored; the INT8 one is the one that was, and is closed."""
        return time_engines(
            self.backends,
            {"dense": dense, "pruned": pruned},
            int8,
            self.sample(),
            self.score_of,
            self._note,
            self.dirpath,
            self.options,
        )

    def _build(self, artifact: OnnxArtifact) -> Engine:
        """An INT8 engine on the first backend that can build one; the others leave the run with a note."""
        while True:
            try:
                return build(self.backends[0], artifact, "int8", self.dirpath / "engines", self.options)
            except ExportError as error:
                failed, *others = self.backends
                if not others and (self.options.engines is not None or failed.name == OnnxRuntimeBackend.name):
                    raise
                self._note(f"No {failed.name} engine: {error}")
                self.backends = others or [OnnxRuntimeBackend()]

    def _note(self, text: str) -> None:
        self.notes.append(text)
        _log.warning("hqp: %s", text)

    def measure_holdout(self, engine: Engine) -> tuple[float | None, int]:
        """Score of an engine on the held-out data, and the number of samples."""
        if self.holdout is None:
            return None, 0
        with self.running_on(engine), counting(self.pl_module) as sizes:
            return self.score(self.holdout), sum(sizes)

    def score(self, loaders: Any) -> float:
        """The monitored metric of what the LightningModule holds."""
        return score(self.trainer, self.pl_module, loaders, self.budget.monitor)

    def call(self) -> Call:
        """What the network receives in validation, of one sample."""
        return self._asked()[0]

    def running_on(self, engine: Engine) -> AbstractContextManager[None]:
        """Inside, validation runs on the engine."""
        _, way, made = self._asked()
        return running_on(way, engine, made)

    def example(self) -> tuple[torch.Tensor, ...]:
        """A sample of each input, on the CPU; floats in float32, and finite: a NaN in it says nothing here."""
        return tuple(torch.nan_to_num(x) for x in self._asked()[2].example)

    def sample(self) -> Arrays:
        """The same as arrays."""
        return bundle([x.numpy() for x in self.example()])

    def calibration(self) -> Iterator[Arrays]:
        """The calibration batches without broken images, on the CPU; the same at every call, after every training."""
        of, seed = (self.trainer, self.pl_module, self.network, self.options.loss_fn), CALIBRATION_SEED
        with fixed_seed(seed):
            for call in batches(
                *of, self.options.calibration_data, self.options.calibration_batches, seed, self.call()
            ):
                tensors = [laid_out(on_cpu(x), self.options.layout) for x in call.tensors()]
                whole = torch.stack([x.reshape(len(x), -1).isfinite().all(1) for x in tensors]).all(0)
                note = "Images with NaN or infinite values are left out of the calibration."
                if not bool(whole.all()) and note not in self.notes:
                    self._note(note)
                if bool(whole.any()):
                    yield bundle([x[whole].numpy() for x in tensors])

    def tensors(self, float_onnx: OnnxArtifact, int8_onnx: OnnxArtifact) -> tuple[ComparedTensor, ...]:
        """The two files tensor by tensor, on some calibration images."""
        images = cut(next(self.calibration()), 0, _COMPARED)
        return compare_files(float_onnx.path, int8_onnx.path, images, self.options.threads)

    def _asked(self) -> tuple[Call, Way, Exportable]:
        if self._received is None:
            receiver = Receiver(self.trainer, self.pl_module, self.network, self.options.loss_fn)
            with fixed_seed(CALIBRATION_SEED):
                batch = next(prepared(self.trainer, self.pl_module, "val", 1, CALIBRATION_SEED))
                call = one_sample(receiver.call(batch), self.network)
            # What it returns has the same structure whatever is pruned later.
            made = exportable(self.network, call, self.options.outputs, self.options.layout)
            self._received = call, receiver.way, made
        return self._received
