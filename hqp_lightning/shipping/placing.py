"""Which layers stay in float before any score is asked: by rule, by what NVIDIA's compiler makes of it, or by time."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

from hqp_lightning import export
from hqp_lightning.board.rtx import compile_rtx
from hqp_lightning.core.mixed_precision import regions, taken_out
from hqp_lightning.errors import ExportError
from hqp_lightning.export.engines import OpenVINOBackend
from hqp_lightning.export.engines.openvino import device_name
from hqp_lightning.export.engines.rtx import missing
from hqp_lightning.export.forms import write_form
from hqp_lightning.export.latency import How
from hqp_lightning.export.options import FileOptions
from hqp_lightning.export.paying import with_idle_additions
from hqp_lightning.export.quicker import is_quicker, promising, time_ratios
from hqp_lightning.records import OnnxArtifact
from hqp_lightning.shipping.known import Known

__all__ = ["compiled_cost", "fewer_kernels", "left_in_float", "less_time"]

_log = logging.getLogger(__name__)
_TRIES = 16

Cost = tuple[int, int]
"""Kernels of one call, and the bytes that they move."""


def left_in_float(
    float_onnx: OnnxArtifact, ranges: Mapping[str, export.Range], options: FileOptions, folder: Path
) -> tuple[str, ...]:
    """Names of the nodes that no quantizer shall stand at, as ``options.placement`` says.

    ``"compiled"`` and ``"timed"`` write what they measured to ``placement.json`` in ``folder`` and go on from there;
    where the compiler or OpenVINO is missing or refuses the file, they are ``"paying"``.
    """
    if options.placement == "all":
        return ()
    paying = export.unprofitable(float_onnx.path)
    compiled = options.placement == "compiled"
    if options.placement == "paying" or (compiled and options.activation_type != "int8"):
        return paying
    if (reason := _without_compiler(options) if compiled else _without_openvino(options)) is not None:
        _log.warning("hqp: placement=%r is 'paying' here: %s", options.placement, reason)
        return paying
    inside = [p.node for p in export.placements(float_onnx.path) if p.weight_axis is not None and p.node not in paying]
    where = {"quantize_hardswish": options.quantize_hardswish, "quantize_se": options.quantize_se}
    settled = hashlib.sha256(repr(sorted(ranges.items())).encode()).hexdigest()
    of = {"model": float_onnx.sha256, "ranges": settled, **_answers_of(options), **where}
    known = Known(folder / "placement.json", of)

    def cost(exclude: Iterable[str]) -> Cost:
        left = with_idle_additions(float_onnx.path, list(exclude))
        measure = partial(compiled_cost, float_onnx.path, ranges, left, options.rtx[0], **where)
        kernels, moved = known.get("|".join(sorted(left)), measure)
        return kernels, moved

    try:
        if compiled:
            found = fewer_kernels(paying, inside, cost)
        else:
            how = How(threads=options.threads, batch_size=options.batch_size)
            found = less_time(float_onnx.path, ranges, paying, inside, how, known, **where)
        more = ", ".join(n for n in found if n not in paying)
        _log.info("hqp: placement=%r leaves in float, too: %s", options.placement, more or "nothing")
        return with_idle_additions(float_onnx.path, found)
    except ExportError as error:
        _log.warning("hqp: placement=%r is 'paying' here: %s", options.placement, error)
        return paying


def compiled_cost(
    float_path: str | Path, ranges: Mapping[str, export.Range], exclude: Iterable[str], capability: str, **where: bool
) -> Cost:
    """What NVIDIA's compiler makes of the float16-typed INT8 form with these nodes in float.

    Raises:
        ExportError: it refuses the file.
    """
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch)
        file = export.quantize(float_path, ranges, at / "q.onnx", exclude=sorted(exclude), **where)
        made = compile_rtx(write_form(file.path, "fp16", at / "q.fp16.onnx"), at / "q.engine", capability)
        return made.kernels, made.bytes_moved


def fewer_kernels(left: Sequence[str], layers: Sequence[str], cost: Callable[[Iterable[str]], Cost]) -> tuple[str, ...]:
    """Take layers out of INT8 as long as kernels or bytes fall and neither rises.

    Args:
        left: what is in float from the start.
        layers: the others, in graph order.
        cost: of a file with these nodes in float.

    Returns:
        What to leave in float; never all, since then FP16 is the answer, which the report gives.
    """
    best = cost(left)

    def better(_: Collection[str], tried: Collection[str]) -> bool:
        nonlocal best
        now = cost(tried)
        if now == best or now[0] > best[0] or now[1] > best[1]:
            return False
        best = now
        return True

    return taken_out(left, layers, regions(layers), better)


def less_time(
    float_path: str,
    ranges: Mapping[str, export.Range],
    left: Sequence[str],
    layers: Sequence[str],
    how: How,
    known: Known,
    **where: bool,
) -> tuple[str, ...]:
    """Take layers out of INT8 as long as OpenVINO's time of a call falls by more than chance.

    Only regions that the engine's counters promise something for are measured, and of these the sixteen best.

    Args:
        float_path: the model.
        ranges: of its tensors.
        left: what is in float from the start.
        layers: the others, in graph order.
        how: the engines run.
        known: what was measured before.
        where: see `hqp_lightning.export.placements`.

    Returns:
        What to leave in float, never all.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:

        def written(name: str, exclude: Collection[str]) -> str:
            out = with_idle_additions(float_path, list(exclude))
            return export.quantize(float_path, ranges, Path(scratch) / name, exclude=sorted(out), **where).path

        def better(now: Collection[str], tried: Collection[str]) -> bool:
            key = " over ".join("|".join(sorted(set(names) - set(left))) for names in (tried, now))
            return is_quicker(
                known.get(key, lambda: time_ratios(written("now.onnx", now), written("tried.onnx", tried), how))
            )

        promised = known.get("promising", lambda: promising(float_path, written("now.onnx", left), layers, how))
        return taken_out(left, layers, promised[:_TRIES], better)


def _without_compiler(options: FileOptions) -> str | None:
    return missing() or (None if options.rtx else "rtx is empty")


def _without_openvino(options: FileOptions) -> str | None:
    engine = OpenVINOBackend()
    if options.engines is not None and engine.name not in options.engines:
        return f"engines={list(options.engines)} has no {engine.name!r}"
    return engine.unavailable()


def _answers_of(options: FileOptions) -> dict[str, object]:
    """What the answers of a search depend on beside the file."""
    if options.placement == "compiled":
        return {"capability": options.rtx[0]}
    engine = OpenVINOBackend.name
    machine = {"engine": engine, "version": metadata.version(engine), "device": device_name()}
    return {**machine, "threads": options.threads, "batch_size": options.batch_size}
