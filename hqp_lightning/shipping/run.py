"""What every export of a run works with: the run's data, its validation loop, and the engines of this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer

from hqp_lightning import export
from hqp_lightning.core.verdict import judge
from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.export.engines import Engine, OnnxRuntimeBackend
from hqp_lightning.loop.batches import batches, fixed_seed
from hqp_lightning.loop.network import LossFn, find_network
from hqp_lightning.loop.options import ExportOptions
from hqp_lightning.loop.trainer import load_validation
from hqp_lightning.records import Budget, EngineReport, ModelFigures, OnnxArtifact, Verdict
from hqp_lightning.search.state import Accepted
from hqp_lightning.shipping.quantizing import Quantized, quantize_within
from hqp_lightning.shipping.scoring import counting, holdout_loaders, running_on, score
from hqp_lightning.shipping.timing import build, time_engines, usable_backends
from hqp_lightning.surgery import restore_

__all__ = ["Exporting", "check_exportable"]

_log = logging.getLogger(__name__)
_CALIBRATION_SEED = 0


def check_exportable(trainer: Trainer, pl_module: LightningModule, path: str | None, loss_fn: LossFn | None) -> None:
    """Run the network on a validation batch, to know before the training what could not be written after it.

    Raises:
        ConfigurationError: the network takes or returns something else than one tensor.
    """
    _, network = find_network(pl_module, path)
    load_validation(trainer)
    modes = {m: m.training for m in network.modules()}
    try:
        network.eval()
        with fixed_seed(), torch.no_grad(), trainer.precision_plugin.val_step_context():
            args = next(batches(trainer, pl_module, network, loss_fn, "val", 1, _CALIBRATION_SEED), ())
            out = network(*args) if args else None
    finally:
        for module, mode in modes.items():
            module.training = mode
    if args and not (len(args) == 1 and isinstance(args[0], torch.Tensor) and isinstance(out, torch.Tensor)):
        raise ConfigurationError(
            "Int8Export writes networks of one input and one output tensor; "
            f"{type(network).__name__} is called with {len(args)} inputs and returns a {type(out).__name__}. Name the "
            "part that is one with module=..., or leave Int8Export out: HQPPruning alone works with a loss_fn."
        )


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
        self._sample: torch.Tensor | None = None

    def float_model(self, model: Accepted, name: str) -> tuple[OnnxArtifact, ModelFigures]:
        """Put a model in place, write it as ONNX, and score it on the held-out data."""
        restore_(model.snapshot, self.pl_module)
        artifact = export.export_onnx(self.network, self.example(), self.dirpath / name)
        return artifact, self.figures(model, artifact)

    def figures(self, model: Accepted, artifact: OnnxArtifact) -> ModelFigures:
        """Figures of a float model, which the LightningModule holds."""
        holdout = self.score(self.holdout) if self.holdout is not None else None
        return ModelFigures(model.score, model.macs, model.params, artifact.file_bytes, holdout)

    def quantized(self, float_onnx: OnnxArtifact, name: str, max_float_layers: int) -> Quantized:
        """The INT8 form of a float model, on its engine, scored and judged."""
        return quantize_within(
            float_onnx, self.calibration, self.measure, self.dirpath / name, self.options, max_float_layers
        )

    def measure(self, artifact: OnnxArtifact) -> tuple[Engine, Verdict]:
        """An engine of an INT8 file, and what its score on the decision data means."""
        engine = self._build(artifact)
        try:
            with counting(self.network) as sizes:
                measured = self.score_of(engine)
        except BaseException:
            engine.close()
            raise
        self.samples = sum(sizes)
        return engine, judge(self.baseline, measured, self.budget)

    def score_of(self, engine: Engine) -> float:
        """Score of an engine on the decision data."""
        with running_on(self.network, engine):
            return self.score(self.trainer.val_dataloaders)

    def engines(self, dense: OnnxArtifact, pruned: OnnxArtifact, int8: Quantized) -> list[EngineReport]:
        """Every engine timed, those of the pruned model scored; the INT8 one is the one that was, and is closed."""
        return time_engines(
            self.backends,
            {"dense": dense, "pruned": pruned},
            int8,
            self.example().numpy(),
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
        with running_on(self.network, engine), counting(self.network) as sizes:
            return self.score(self.holdout), sum(sizes)

    def score(self, loaders: Any) -> float:
        """The monitored metric of what the LightningModule holds."""
        return score(self.trainer, self.pl_module, loaders, self.budget.monitor)

    def example(self) -> torch.Tensor:
        """One input, with its batch axis."""
        if self._sample is None:
            self._sample = next(self._inputs(1))[:1].clone()
        return self._sample

    def calibration(self) -> Iterator[np.ndarray]:
        """The calibration batches."""
        return (x.numpy() for x in self._inputs(self.options.calibration_batches))

    def _inputs(self, limit: int) -> Iterator[torch.Tensor]:
        """Inputs of the network on the CPU, the same at every call and after every training."""
        of, seed = (self.trainer, self.pl_module, self.network, self.options.loss_fn), _CALIBRATION_SEED
        with fixed_seed(seed):
            for args in batches(*of, self.options.calibration_data, limit, seed):
                if len(args) != 1 or not isinstance(args[0], torch.Tensor):
                    raise ExportError(
                        f"export needs a network of one input tensor; it is called with {len(args)} inputs."
                    )
                yield args[0].detach().float().cpu()
