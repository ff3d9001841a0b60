"""Which runtimes this machine has, and how fast the models are on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from hqp_lightning.board.arrays import Arrays, changed
from hqp_lightning.errors import ExportError
from hqp_lightning.export.engines import Backend, Engine, backends, latencies
from hqp_lightning.export.options import FileOptions
from hqp_lightning.records import EngineReport, OnnxArtifact
from hqp_lightning.shipping.quantizing import Quantized

__all__ = ["build", "processors", "time_engines", "time_in_turn", "usable_backends"]


def processors() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_backends(names: tuple[str, ...] | None, activation_type: str) -> tuple[list[Backend], list[str]]:
    """The backends asked for that run here, preferred first; one line for each that does not, and what else to know.

    Without names: TensorRT where there is a GPU, and OpenVINO; onnxruntime only where neither is there, since its INT8
    is exact but no speed figure. A runtime that does not read the activation type is no choice.

    Raises:
        ExportError: none of them can run here.
    """
    chosen = [b for b in backends() if activation_type in b.activation_types and (names is None or b.name in names)]
    reasons = {b.name: b.unavailable() for b in chosen}
    usable = [b for b in chosen if reasons[b.name] is None]
    absent = [reason for reason in reasons.values() if reason]
    if not usable:
        raise ExportError(f"none of the engines asked for can run here: {'; '.join(absent)}")
    if names is None and len(usable) > 1:
        usable = [b for b in usable if b.name != "onnxruntime"]
    cautions = [caution for b in usable[:1] if (caution := b.caution())]
    return usable, [*absent, *cautions]


def build(backend: Backend, artifact: OnnxArtifact, precision: str, folder: Path, options: FileOptions) -> Engine:
    """An engine of ``artifact`` with the threads and the batch size of the options."""
    return backend.build(artifact.path, precision, folder, threads=options.threads, batch_size=options.batch_size)


def time_engines(
    usable: list[Backend],
    models: Mapping[str, OnnxArtifact],
    int8: Quantized,
    example: Arrays,
    score: Callable[[Engine], float],
    note: Callable[[str], None],
    dirpath: Path,
    options: FileOptions,
) -> list[EngineReport]:
    """Time the float models and the INT8 one in turn, backend by backend, and score what could be deployed.

    That is the pruned model, or the dense one where nothing was pruned.

    Args:
        usable: the backends; on the first one every engine of the deployed model is scored.
        models: the ``"dense"`` and, if there is one, the ``"pruned"`` float model.
        int8: the Q/DQ form of the deployed one, with its engine on the first backend and its score; the engine is
            closed.
        example: one sample of each input, with its batch axis.
        score: measures an engine on the decision data.
        note: is told of an engine that can't be built; the others go on.
        dirpath: engines go to its ``engines`` folder; paths in the report are relative to it.
        options: batch size, threads and number of runs.
    """
    rows, deployed = [], "pruned" if "pruned" in models else "dense"
    for backend in usable:
        first = backend is usable[0]
        wanted = {("dense", "fp32"): models["dense"]}
        for p in backend.offered():
            wanted[deployed, p] = int8.artifact if p.startswith("int8") else models[deployed]
        if first:  # what was scored is what is timed, and stays in the folder
            del wanted[deployed, "int8"]
        engines = _built(backend, wanted, note, dirpath, options)
        if first:
            engines[deployed, "int8"] = int8.engine
        with _closing(engines):
            for row, engine in zip(_time(engines, example, dirpath, options), engines.values(), strict=True):
                if first and row.model == deployed:
                    row = replace(row, accuracy=int8.verdict.measured if engine is int8.engine else score(engine))
                rows.append(row)
    return rows


def _built(
    backend: Backend,
    wanted: Mapping[tuple[str, str], OnnxArtifact],
    note: Callable[[str], None],
    dirpath: Path,
    options: FileOptions,
) -> dict[tuple[str, str], Engine]:
    """Those that can be built."""
    engines = {}
    for (model, precision), artifact in wanted.items():
        try:
            engines[model, precision] = build(backend, artifact, precision, dirpath / "engines", options)
        except ExportError as error:
            note(f"The {backend.name} engine of the {model} model in {precision} is left out: {error}")
    return engines


def time_in_turn(
    backend: Backend,
    wanted: Mapping[tuple[str, str], OnnxArtifact],
    example: Arrays,
    dirpath: Path,
    options: FileOptions,
) -> list[EngineReport]:
    """Time models on one backend, a call of each in turn, so that all see the same state of the machine.

    Args:
        backend: where to.
        wanted: ``(model, precision)`` to the ONNX file.
        example: one sample of each input, with its batch axis.
        dirpath: as in `time_engines`.
        options: batch size, threads and number of runs.
    """
    engines = {k: build(backend, a, k[1], dirpath / "engines", options) for k, a in wanted.items()}
    with _closing(engines):
        return _time(engines, example, dirpath, options)


def _closing(engines: Mapping[tuple[str, str], Engine]) -> ExitStack:
    """Closes them all at the end, whatever happens: they hold the memory of a GPU."""
    stack = ExitStack()
    for engine in engines.values():
        stack.enter_context(engine)
    return stack


def _time(
    engines: Mapping[tuple[str, str], Engine], example: Arrays, dirpath: Path, options: FileOptions
) -> list[EngineReport]:
    batch = changed(example, lambda x: np.repeat(x, options.batch_size, axis=0))
    times = latencies({"/".join(k): e for k, e in engines.items()}, batch, runs=options.latency_runs)
    return [
        EngineReport(
            backend=engine.backend,
            model=model,
            precision=precision,
            latency_ms=(latency := times[f"{model}/{precision}"]),
            batch_size=options.batch_size,
            threads=engine.threads,
            device=engine.device,
            path=os.path.relpath(engine.path, dirpath),
            images_per_s=1e3 * options.batch_size / latency.median if latency.median else None,
        )
        for (model, precision), engine in engines.items()
    ]
