"""The latency table of this machine: networks as a whole and their parts, timed on the engine that ships."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from hqp_lightning.board.arrays import Arrays, each
from hqp_lightning.errors import ExportError
from hqp_lightning.export.archive import filled, write_archive
from hqp_lightning.export.artifact import describe
from hqp_lightning.export.counters import openvino_counters
from hqp_lightning.export.engines import Engine, OpenVINOBackend
from hqp_lightning.export.engines.openvino import device_name
from hqp_lightning.export.parts import naming
from hqp_lightning.export.paying import unprofitable
from hqp_lightning.export.placement import quantized_tensors
from hqp_lightning.export.quantize import quantize
from hqp_lightning.export.ranges import Range
from hqp_lightning.records import LatencyTable, NetworkTime

__all__ = ["How", "Whole", "any_input", "comparable", "measure_table", "network_ms", "with_any_ranges"]

_BUILDS, _TURNS, _CALLS = 3, 27, 4
_MISREAD = 2  # so many of the least may be errors of the clock


@dataclass(frozen=True, slots=True)
class How:
    """How a network is quantized and run: what of an export's options its latency depends on."""

    placement: str = "paying"
    activation_type: str = "int8"
    quantize_hardswish: bool = False
    quantize_se: bool = False
    threads: int = 1
    batch_size: int = 1
    layout: str = "NCHW"

    @property
    def clock(self) -> str:
        """Processor time, in which other programs hardly show; of several threads it would be the sum."""
        return "processor" if self.threads == 1 else "wall"


@dataclass(frozen=True, slots=True)
class Whole:
    """A network to time as a whole: see `NetworkTime`.

    ``float_path`` is its ONNX file, ``called`` the layers in the order of their calls; its parts are
    timed if it is ``counted``.
    """

    name: str
    widths: Mapping[str, tuple[int, ...]]
    float_path: str
    called: tuple[str, ...]
    counted: bool = True


def measure_table(
    wholes: Sequence[Whole], per_channel: Mapping[str, bool], how: How, archive: Path | None = None
) -> LatencyTable:
    """Time networks and their parts on OpenVINO.

    Args:
        wholes: the dense network, and others of the same layers; timed in turn.
        per_channel: layer name to whether it is no full convolution or linear layer.
        how: they are quantized and run.
        archive: a file for `hqp_lightning.board.profiling.profile`, written where it is given.

    Raises:
        ExportError: OpenVINO is not installed, or a file can't be quantized or run.
    """
    if (reason := OpenVINOBackend().unavailable()) is not None:
        raise ExportError(reason)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        floats = [filled(w.float_path, Path(folder) / f"{k}.float.onnx") for k, w in enumerate(wholes)]
        int8 = [with_any_ranges(path, Path(folder) / f"{k}.onnx", how) for k, path in enumerate(floats)]
        files = [(floats[0], "fp32"), *((path, "int8") for path in int8)]
        dense_ms, *times = network_ms(files, how)
        names = [naming(w.float_path, w.called) for w in wholes]
        counted = [path for w, path in zip(wholes, int8, strict=True) if w.counted]
        executed = openvino_counters(counted, [any_input(path, how) for path in counted], how.threads)
        seen = dict(zip(counted, executed, strict=True))
        found = [n.totals(seen.get(path, ())) for n, path in zip(names, int8, strict=True)]
        where = {part: n for n, parts in zip(reversed(names), reversed(found), strict=True) for part in parts}
        dense = wholes[0]
        table = LatencyTable(
            engine=OpenVINOBackend.name,
            version=metadata.version(OpenVINOBackend.name),
            device=device_name(),
            threads=how.threads,
            clock=how.clock,
            batch_size=how.batch_size,
            inputs=tuple(tuple(n or 0 for n in t.shape) for t in describe(dense.float_path).inputs),
            parts={part: n.part(part, per_channel) for part, n in where.items()},
            networks=(
                NetworkTime("dense", "fp32", dense.widths, dense_ms, {}),
                *(NetworkTime(w.name, "int8", w.widths, ms, p) for w, ms, p in zip(wholes, times, found, strict=True)),
            ),
        )
        if archive is not None and how.activation_type == "int8":  # TensorRT reads no other
            write_archive(archive, asdict(table), [path for path, _ in files], names[0].nodes)
        return table


def comparable(table: LatencyTable) -> bool:
    """Whether what is timed here, now, can be held against a table."""
    engine = OpenVINOBackend()
    known = engine.unavailable() is None and table.engine == engine.name
    return known and (table.version, table.device) == (metadata.version(engine.name), device_name())


def network_ms(files: Sequence[tuple[str, str]], how: How, turns: int | None = None) -> list[float]:
    """Milliseconds of a call of each ONNX file, ``(path, precision)``, in turn; as a table has them by default.

    The median of a few engines of each: where its memory lies makes one engine up to a tenth slower for as long as it
    lives, and machines have slow moments. ``turns``: so many, of one engine each.
    """
    if turns is not None:
        return _engines_ms(files, how, turns)
    found = [_engines_ms(files, how, _TURNS) for _ in range(_BUILDS)]
    return [statistics.median(of) for of in zip(*found, strict=True)]


def _engines_ms(files: Sequence[tuple[str, str]], how: How, turns: int) -> list[float]:
    backend = OpenVINOBackend()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        engines = [
            stack.enter_context(backend.build(p, precision, folder, threads=how.threads, batch_size=how.batch_size))
            for p, precision in files
        ]
        return _in_turn(engines, [any_input(path, how) for path, _ in files], how, turns)


def with_any_ranges(float_path: str, out_path: Path, how: How) -> str:
    """A Q/DQ file with the placement that ships and ranges that fit nothing: it takes as long."""
    where = {"quantize_hardswish": how.quantize_hardswish, "quantize_se": how.quantize_se}
    exclude = () if how.placement == "all" else unprofitable(float_path)
    a = Range.symmetric(1.0) if how.activation_type == "int8" else Range(-1.0, 1.0, how.activation_type)
    ranges = {name: a for name in quantized_tensors(float_path, **where)}
    return quantize(float_path, ranges, out_path, exclude=exclude, **where).path


def _in_turn(engines: Sequence[Engine], inputs: Sequence[Arrays], how: How, turns: int) -> list[float]:
    """Milliseconds of a call of each, among the least of all: what disturbs a call makes it longer.

    A few calls of each in turn, the first untimed: on a busy machine only those are clean that fit into a time slice.
    Not the least: one call of some thousands seems to take a fifth of its time, where the clock was read before the
    time of a thread on another core was booked (seen on Linux in a virtual machine).
    """
    now = time.process_time if how.clock == "processor" else time.perf_counter
    times: list[list[float]] = [[] for _ in engines]
    for _ in range(turns):
        for of, engine, x in zip(times, engines, inputs, strict=True):
            call = engine.prepared(x)
            call()
            for _ in range(_CALLS):
                start = now()
                call()
                of.append(1e3 * (now() - start))
    return [sorted(of)[max(_MISREAD, len(of) // 50)] for of in times]


def any_input(path: str, how: How) -> Arrays:
    """Something for each input of a model."""
    given = tuple(
        np.full((how.batch_size, *(size or 1 for size in t.shape)), 0.1 if t.dtype.startswith("float") else 1, t.dtype)
        for t in describe(path).inputs
    )
    return given if len(given) > 1 else each(given)[0]
