"""From accepted models to the artifact that ships: export, calibrate, score, walk back, time, report."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer

from hqp_lightning import export
from hqp_lightning.callbacks.network import find_network
from hqp_lightning.callbacks.options import ExportOptions
from hqp_lightning.callbacks.quantizing import Quantized, quantize_within
from hqp_lightning.callbacks.scoring import counting, holdout_loaders, running_on, score
from hqp_lightning.callbacks.state import Accepted, PruningState
from hqp_lightning.callbacks.timing import build, time_engines, usable_backends
from hqp_lightning.callbacks.trainer import batches, fixed_seed, loose
from hqp_lightning.core.verdict import judge
from hqp_lightning.errors import ExportError
from hqp_lightning.export.engines import Engine
from hqp_lightning.records import (
    Budget,
    LayerChannels,
    ModelFigures,
    OnnxArtifact,
    Report,
    Verdict,
)
from hqp_lightning.report import assemble, versions
from hqp_lightning.surgery import Structure, layer_macs, restore_, take

__all__ = ["ExportOptions", "ship"]

_log = logging.getLogger(__name__)
_CALIBRATION_SEED = 0


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
        return _Shipping(trainer, pl_module, path, budget, search, dirpath, options).run()


@dataclass
class _Shipping:
    trainer: Trainer
    pl_module: LightningModule
    path: str | None
    budget: Budget
    search: PruningState | None
    dirpath: Path
    options: ExportOptions

    def run(self) -> Report:
        prefix, self.network = find_network(self.pl_module, self.path)
        self.backends, absent = usable_backends(self.options.engines)
        self.notes = list(absent)
        for note in self.notes:
            _log.info("hqp: %s", note)
        self.holdout = holdout_loaders(self.trainer, self.options.holdout)
        dense, candidates = self._models()
        self.baseline = dense.score if self.search is None or self.search.baseline is None else self.search.baseline
        dense_onnx, baseline = self._float(dense, "model.dense.onnx")
        baseline = replace(baseline, accuracy=self.baseline)
        shipped, float_onnx, made = self._walk(candidates)
        int8_onnx, verdict = made.artifact, made.verdict
        pruned = self._figures(shipped, float_onnx)
        int8 = replace(pruned, accuracy=verdict.measured, file_bytes=int8_onnx.file_bytes)
        held: list[int] = []
        if self.holdout is not None:
            with running_on(self.network, made.engine), counting(self.network) as held:
                int8 = replace(int8, holdout_accuracy=self._score(self.holdout))
        made.engine.close()
        self._manifest(int8_onnx, verdict)
        return assemble(
            self.budget,
            baseline,
            pruned,
            int8,
            samples=self.samples or None,
            holdout_samples=sum(held) or None,
            steps=self.search.records if self.search else (),
            engines=time_engines(
                self.backends,
                {"dense": dense_onnx, "pruned": float_onnx},
                int8_onnx,
                self._example().numpy(),
                {self.backends[0].name: verdict.measured},
                self.dirpath,
                self.options,
            ),
            channels=_channels(dense.snapshot.structure, shipped.snapshot.structure, prefix),
            quantization=made.layers,
            notes=self.notes,
            versions=versions(),
        )

    def _models(self) -> tuple[Accepted, list[Accepted]]:
        """The dense model, and what may ship: the newest accepted model first, the dense one last."""
        if (state := self.search) is not None:
            if state.dense is None:
                raise ExportError("no validation ran during fit, so there is no accuracy to hold the INT8 model to.")
            return state.dense, [*reversed(state.accepted), state.dense]
        macs = sum(layer_macs(self.network.eval(), (self._example(),))[0].values())
        params = sum(p.numel() for p in self.network.parameters())
        trained = Accepted(0, self._score(self.trainer.val_dataloaders), macs, params, take(self.pl_module))
        return trained, [trained]

    def _walk(self, candidates: list[Accepted]) -> tuple[Accepted, OnnxArtifact, Quantized]:
        """The first candidate whose INT8 form is within the budget; the least bad one if none is."""
        tried: list[tuple[float, Accepted]] = []
        for model in candidates:
            float_onnx, made = self._attempt(model, self.options.max_float_layers)
            if made.verdict.kept:
                self._say_what_is_in_float(made)
                return model, float_onnx, made
            name = f"step {model.index}" if model.index else "the dense model"
            self._note(f"INT8 of {name} is over budget, walked back: {made.verdict.reason}.")
            tried.append((made.verdict.drop, model))
            made.engine.close()
        self._note("No INT8 artifact is within the budget; the least bad one is kept as model.int8.onnx.")
        model = min(tried, key=lambda t: t[0])[1]
        return model, *self._attempt(model, 0)

    def _attempt(self, model: Accepted, max_float_layers: int) -> tuple[OnnxArtifact, Quantized]:
        """Export, calibrate, quantize and score one model."""
        restore_(model.snapshot, self.pl_module)
        float_onnx = export.export_onnx(self.network, self._example(), self.dirpath / "model.onnx")
        target = self.dirpath / "model.int8.onnx"
        return float_onnx, quantize_within(
            float_onnx, self._calibration, self._measure, target, self.options, max_float_layers
        )

    def _measure(self, artifact: OnnxArtifact) -> tuple[Engine, Verdict]:
        engine = build(self.backends[0], artifact, "int8", self.dirpath / "engines", self.options)
        with running_on(self.network, engine), counting(self.network) as sizes:
            measured = self._score(self.trainer.val_dataloaders)
        self.samples = sum(sizes)
        return engine, judge(self.baseline, measured, self.budget)

    def _say_what_is_in_float(self, made: Quantized) -> None:
        layers = sorted(made.layers, key=lambda q: q.noise, reverse=True)
        if names := [q.layer for q in layers if q.precision == "float"]:
            self._note(f"Left in float to stay within the budget, noisiest layers first: {', '.join(names)}.")

    def _note(self, text: str) -> None:
        self.notes.append(text)
        _log.warning("hqp: %s", text)

    def _float(self, model: Accepted, name: str) -> tuple[OnnxArtifact, ModelFigures]:
        restore_(model.snapshot, self.pl_module)
        artifact = export.export_onnx(self.network, self._example(), self.dirpath / name)
        return artifact, self._figures(model, artifact)

    def _figures(self, model: Accepted, artifact: OnnxArtifact) -> ModelFigures:
        """Figures of a float model, which the LightningModule holds."""
        holdout = self._score(self.holdout) if self.holdout is not None else None
        return ModelFigures(model.score, model.macs, model.params, artifact.file_bytes, holdout)

    def _score(self, loaders: Any) -> float:
        return score(self.trainer, self.pl_module, loaders, self.budget.monitor)

    def _inputs(self, limit: int) -> Iterator[torch.Tensor]:
        """Training inputs of the network on the CPU, the same at every call as far as the loader's seed allows."""
        with fixed_seed(_CALIBRATION_SEED):
            for args in batches(self.trainer, self.pl_module, self.network, self.options.loss_fn, "train", limit):
                if len(args) != 1 or not isinstance(args[0], torch.Tensor):
                    raise ExportError(
                        f"export needs a network of one input tensor; it is called with {len(args)} inputs."
                    )
                yield args[0].detach().float().cpu()

    def _example(self) -> torch.Tensor:
        if not hasattr(self, "_sample"):
            self._sample = next(self._inputs(1))[:1].clone()
        return self._sample

    def _calibration(self) -> Iterator[np.ndarray]:
        return (x.numpy() for x in self._inputs(self.options.calibration_batches))

    def _manifest(self, artifact: OnnxArtifact, verdict: Verdict) -> None:
        data = loose(self.trainer).datamodule
        export.write_manifest(
            self.dirpath / "manifest.json",
            artifact=artifact,
            classes=getattr(data, "classes", None),
            preprocessing=getattr(data, "preprocessing", None),
            accuracy=verdict.measured,
            calibration={
                "method": self.options.method,
                "batches": self.options.calibration_batches,
                "sha256": export.data_sha256(self._calibration()),
            },
            versions=versions(),
            monitor=self.budget.monitor,
            files=export.board_files(self.dirpath / "model.onnx", artifact.path),
        )


def _channels(before: Structure, after: Structure, prefix: str) -> list[LayerChannels]:
    rows = []
    for name, attributes in before.attributes.items():
        for key in ("out_channels", "out_features"):
            if key in attributes and f"{name}.weight" in before.shapes:  # not a container that notes its width
                layer = name.removeprefix(f"{prefix}.") if prefix else name
                rows.append(LayerChannels(layer, cast(int, attributes[key]), cast(int, after.attributes[name][key])))
    return rows
