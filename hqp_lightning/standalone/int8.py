"""INT8 for a float ONNX file and some pictures: calibrate, quantize within a budget, time, compile, report."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hqp_lightning import export
from hqp_lightning.board.files import write_whole
from hqp_lightning.export.artifact import describe, load_model
from hqp_lightning.export.departures import compare_files
from hqp_lightning.export.engines import Engine
from hqp_lightning.export.options import FileOptions
from hqp_lightning.records import CompiledEngine, ModelFigures, OnnxArtifact, Report, Verdict
from hqp_lightning.report import assemble, versions
from hqp_lightning.shipping.compiling import compile_for_others
from hqp_lightning.shipping.quantizing import Quantized, quantize_within
from hqp_lightning.shipping.timing import build, time_engines, usable_backends
from hqp_lightning.standalone.comparing import check_same
from hqp_lightning.standalone.counting import macs, parameters
from hqp_lightning.standalone.pictures import Pictures
from hqp_lightning.standalone.reading import Reading
from hqp_lightning.standalone.scoring import Scoring, scoring_of, sqnr

__all__ = ["FloatFile", "ship_file", "write_float"]

_log = logging.getLogger(__name__)
_REFERENCES = 8
_TENSORRT_8 = 17


@dataclass(frozen=True)
class FloatFile:
    """A float file of somebody's, and what became of it in our folder."""

    original: Path
    reading: Reading
    artifact: OnnxArtifact

    @property
    def words(self) -> str:
        """For a line of the report."""
        changes = ", ".join(self.reading.changes) or "taken as it is"
        return f"Read from {self.original.name}, opset {self.reading.opset}: {changes}."


def write_float(original: Path, reading: Reading, folder: Path) -> FloatFile:
    """Write the float model into the folder: the very bytes where nothing had to be changed."""
    path = folder / "model.onnx"
    content = reading.model.SerializeToString() if reading.changes else original.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return FloatFile(original, reading, describe(path))


def ship_file(
    source: FloatFile,
    pictures: Pictures,
    folder: Path,
    options: FileOptions,
    *,
    max_drop: float | None = None,
    max_noise: float | None = None,
    calibration: int = 512,
) -> Report:
    """Write ``model.int8.onnx`` and all that a run leaves beside it, but what only training code gives.

    Args:
        source: from `write_float`, in ``folder``.
        pictures: what calibrates and is scored.
        folder: of the files.
        options: how it is quantized and timed.
        max_drop: see `budget_of`.
        max_noise: see `budget_of`.
        calibration: pictures that set the ranges, evenly spread.

    Raises:
        ExportError: the file in our form computes something else, or nothing here can run it.
        ConfigurationError: a budget that can't be kept.
    """
    return _File(source, pictures, folder, options, pictures.some(calibration)).ship(max_drop, max_noise)


@dataclass
class _File:
    source: FloatFile
    pictures: Pictures
    folder: Path
    options: FileOptions
    calibration: Pictures
    notes: list[str] = field(default_factory=list)

    def ship(self, max_drop: float | None, max_noise: float | None) -> Report:
        artifact = self.source.artifact
        first = next(self.calibration.batches())
        check_same(self.source.original, self.source.reading, Path(artifact.path), first)
        self.backends, absent = usable_backends(self.options.engines, self.options.activation_type)
        self.notes += [self.source.words, *absent]
        used = ", ".join(b.name for b in self.backends)
        _log.info("hqp: %d pictures through the float network, on %s", len(self.pictures), self.backends[0].name)
        with build(self.backends[0], artifact, "fp32", self.folder / "engines", self.options) as engine:
            scoring = scoring_of(engine, self.pictures, max_drop, max_noise)
        _log.info("hqp: calibrating on %d of them; quantizing and scoring until it is within", len(self.calibration))
        made = self._quantized(scoring)
        self._tell(made, scoring)
        _log.info("hqp: timing float and INT8 on %s", used)
        engines = time_engines(
            self.backends,
            {"dense": artifact},
            made,
            first[:1],
            lambda e: scoring.measure(e)[0],
            self._note,
            self.folder,
            self.options,
        )
        _log.info("hqp: writing files for boards, compiling if NVIDIA's compiler is here")
        compiled = self._for_the_board(made, scoring, first)
        model = load_model(artifact.path)
        dense = ModelFigures(scoring.baseline, macs(model), parameters(model), artifact.file_bytes)
        return assemble(
            scoring.budget,
            dense,
            dense,
            ModelFigures(made.verdict.measured, dense.macs, dense.params, made.artifact.file_bytes),
            samples=len(self.pictures),
            engines=engines,
            compiled=compiled,
            quantization=made.layers,
            tensors=compare_files(artifact.path, made.artifact.path, first[:_REFERENCES], self.options.threads),
            notes=self.notes,
            versions=versions(),
        )

    def _quantized(self, scoring: Scoring) -> Quantized:
        def measure(artifact: OnnxArtifact) -> tuple[Engine, Verdict]:
            engine = build(self.backends[0], artifact, "int8", self.folder / "engines", self.options)
            return engine, scoring.judge(scoring.measure(engine)[0])

        path = self.folder / "model.int8.onnx"
        source = self.source.artifact
        paying = {p.node for p in export.placements(source.path)} - set(export.unprofitable(source.path))
        limit = max(len(paying) - 1, 0)  # all of them would be no INT8
        made = quantize_within(source, self._batches, measure, path, self.options, limit, self._advice(limit))
        if made.verdict.kept or not limit:
            return made
        advice = f"Even {limit} of them in float did not bring it within the budget. {self._advice(0)}"
        return quantize_within(source, self._batches, measure, path, self.options, 0, advice)

    def _advice(self, limit: int) -> str:
        """In the command's own options."""
        first = f"Over the budget up to {limit} of them go back to float. " if limit else ""
        finer = ", or for a CPU --activation-type uint8" if self.options.activation_type == "int8" else ""
        return f"{first}What may help: other or more pictures for --calibration{finer}."

    def _batches(self) -> Iterator[np.ndarray]:
        return self.calibration.batches()

    def _tell(self, made: Quantized, scoring: Scoring) -> None:
        score, same = scoring.measure(made.engine)
        count = len(self.pictures)
        how = "" if scoring.labelled else f"The logits of INT8 have an SQNR of {sqnr(score)}, where at least "
        how += "" if scoring.labelled else f"{sqnr(scoring.budget.max_drop)} are asked for. "
        self.notes.append(f"{how}INT8 gives the float network's class for {same:.1%} of {count} pictures.")
        if made.warning is not None:
            self.notes.append(made.warning)
        if made.by_rule:
            self.notes.append(
                f"{len(made.by_rule)} of {len(made.layers)} quantizable nodes are left in float, where INT8 wins "
                "nothing: depthwise and thin layers (docs/int8.md)."
            )
        noisy = sorted(made.layers, key=lambda q: q.noise, reverse=True)
        if names := [q.layer for q in noisy if q.precision == "float" and q.layer not in made.by_rule]:
            self.notes.append(f"Left in float to stay within the budget, noisiest layers first: {', '.join(names)}.")
        if self.options.activation_type == "int8" and made.artifact.opset > _TENSORRT_8:
            self.notes.append(f"Opset {made.artifact.opset}: TensorRT 8 (JetPack 5) reads up to {_TENSORRT_8}.")

    def _for_the_board(self, made: Quantized, scoring: Scoring, images: np.ndarray) -> list[CompiledEngine]:
        """Forms, engines of other machines' GPUs, reference logits, and the manifest."""
        paths = self.source.artifact.path, made.artifact.path
        files = export.board_files(*paths, self.options.activation_type)
        compiled, notes = compile_for_others(None, self.folder, self.options)
        self.notes += notes
        references = export.write_references(self.folder / export.REFERENCES, images[:_REFERENCES], *paths)
        export.write_manifest(
            self.folder / "manifest.json",
            artifact=made.artifact,
            classes=self.pictures.classes,
            preprocessing=self.pictures.steps,
            accuracy=made.verdict.measured if scoring.labelled else None,
            calibration={
                "method": self.options.method,
                "activation_type": self.options.activation_type,
                "pictures": len(self.calibration),
                "sha256": export.data_sha256(self._batches()),
            },
            versions=versions(),
            monitor=scoring.budget.monitor if scoring.labelled else None,
            files=files,
            engines=compiled,
            references=references,
            layout=self.pictures.layout,
        )
        return compiled

    def _note(self, text: str) -> None:
        self.notes.append(text)
        _log.warning("hqp: %s", text)
