"""Which layers stay in float before any score is asked: by rule, or by what NVIDIA's compiler makes of the file."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hqp_lightning import export
from hqp_lightning.board.rtx import compile_rtx
from hqp_lightning.errors import ExportError
from hqp_lightning.export.board_files import write_whole
from hqp_lightning.export.engines.rtx import missing
from hqp_lightning.export.forms import write_form
from hqp_lightning.export.options import FileOptions
from hqp_lightning.export.paying import with_idle_additions
from hqp_lightning.records import OnnxArtifact

__all__ = ["compiled_cost", "fewer_kernels", "left_in_float"]

_log = logging.getLogger(__name__)

Cost = tuple[int, int]
"""Kernels of one call, and the bytes that they move."""


def left_in_float(
    float_onnx: OnnxArtifact, ranges: Mapping[str, export.Range], options: FileOptions, folder: Path
) -> tuple[str, ...]:
    """Names of the nodes that no quantizer shall stand at, as ``options.placement`` says.

    ``"compiled"`` writes what it measured to ``placement.json`` in ``folder`` and goes on from there; where the
    compiler is missing or refuses the file, it is ``"paying"``.
    """
    if options.placement == "all":
        return ()
    paying = export.unprofitable(float_onnx.path)
    if options.placement == "paying" or options.activation_type != "int8":
        return paying
    if (reason := missing()) is not None or not options.rtx:
        _log.warning("hqp: placement='compiled' is 'paying' here: %s", reason or "rtx is empty")
        return paying
    layers = [p.node for p in export.placements(float_onnx.path) if p.weight_axis is not None]
    where = {"quantize_hardswish": options.quantize_hardswish, "quantize_se": options.quantize_se}
    settled = hashlib.sha256(repr(sorted(ranges.items())).encode()).hexdigest()
    of = {"model": float_onnx.sha256, "ranges": settled, "capability": options.rtx[0], **where}
    known = _Known(folder / "placement.json", of)

    def cost(exclude: Iterable[str]) -> Cost:
        left = with_idle_additions(float_onnx.path, list(exclude))
        return known.get(left, lambda: compiled_cost(float_onnx.path, ranges, left, options.rtx[0], **where))

    try:
        found = fewer_kernels(paying, [n for n in layers if n not in paying], cost)
        return with_idle_additions(float_onnx.path, found)
    except ExportError as error:
        _log.warning("hqp: placement='compiled' is 'paying' here: %s", error)
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


def fewer_kernels(
    left: tuple[str, ...], layers: Iterable[str], cost: Callable[[Iterable[str]], Cost]
) -> tuple[str, ...]:
    """Take layers out of INT8, one after the other, as long as kernels or bytes fall and neither rises.

    Neighbours are tried together first: a layer between two INT8 ones hands on what it saves only with them.

    Args:
        left: what is in float from the start.
        layers: the others, in graph order.
        cost: of a file with these nodes in float.

    Returns:
        What to leave in float; never all, since then FP16 is the answer, which the report gives.
    """
    layers = list(layers)
    found, best = set(left), cost(left)
    regions = [layers[k : k + size] for size in (4, 1) for k in range(0, len(layers), size)]
    for region in regions:
        tried = found.union(region)
        if tried == found or set(layers) <= tried:
            continue
        now = cost(tried)
        if now != best and now[0] <= best[0] and now[1] <= best[1]:
            found, best = tried, now
    return tuple(n for n in (*left, *layers) if n in found)


class _Known:
    """Costs that were measured, on disk, model by model: an interrupted search goes on where it was."""

    def __init__(self, path: Path, of: Mapping[str, object]) -> None:
        self._path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))["searches"]
            self._searches = [{"of": dict(s["of"]), "costs": dict(s["costs"])} for s in content]
        except (OSError, ValueError, LookupError, TypeError):
            self._searches = []
        found = next((s for s in self._searches if s["of"] == of), None)
        if found is None:
            found = {"of": dict(of), "costs": {}}
            self._searches.append(found)
        self._costs: dict[str, list[int]] = found["costs"]

    def get(self, exclude: Iterable[str], measure: Callable[[], Cost]) -> Cost:
        key = "|".join(sorted(exclude))
        if key not in self._costs:
            self._costs[key] = list(measure())
            write_whole(self._path, json.dumps({"searches": self._searches}, indent=1).encode())
        kernels, moved = self._costs[key]
        return kernels, moved
