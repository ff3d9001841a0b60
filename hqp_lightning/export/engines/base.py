"""What every runtime offers: a backend says whether it can run here and builds engines; an engine runs batches."""

from __future__ import annotations

import logging
import os
import platform
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from hqp_lightning.board.arrays import Arrays
from hqp_lightning.core.calibration import ACTIVATION_TYPES
from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.records import Latency

__all__ = ["Backend", "Engine", "lacks_vnni", "latencies", "processor_name"]

_log = logging.getLogger(__name__)

_CPUINFO = Path("/proc/cpuinfo")
_ROW = 10  # timed calls of an engine before the next has its turn
_SETTLED_MS = 50.0  # of untimed calls are enough


class Engine(ABC):
    """A model ready to run on one device; close it, or use it in a ``with`` statement. One thread at a time may use it.

    Attributes:
        backend: name of the runtime.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"int8+bf16"``.
        device: name of the processor, for people.
        threads: CPU threads it uses; 0 on a GPU.
        path: the file it runs from.
    """

    def __init__(self, backend: str, precision: str, device: str, threads: int, path: str) -> None:
        self.backend, self.precision, self.device, self.threads, self.path = backend, precision, device, threads, path

    @abstractmethod
    def run(self, batch: Arrays) -> Arrays:
        """Return the logits ``(batch, classes)`` of a batch of any size, float32 or of the model's own type.

        Of a model with several inputs a tuple of arrays is given, of several outputs one is returned, in its order.
        """

    def prepared(self, batch: Arrays) -> Callable[[], object]:
        """A call on this batch, until the engine is given another: what a program does in its loop.

        Where a runtime can, without checks and copies: what Python does around a call of a small network is a tenth of
        it, and not the engine's.
        """
        return lambda: self.run(batch)

    def latency_ms(self, batch: Arrays) -> float:
        """Run one batch and return how long it took, milliseconds: wall time, unless the runtime has a better clock."""
        call = self.prepared(batch)
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)

    @abstractmethod
    def close(self) -> None:
        """Free the runtime's memory; the engine cannot run afterwards. May be called again."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Backend(ABC):
    """A runtime. Importing the module that defines it never imports the runtime itself."""

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    activation_types: ClassVar[tuple[str, ...]] = ACTIVATION_TYPES
    """Those that its INT8 files may have, see `hqp_lightning.core.calibration.Range`."""

    @abstractmethod
    def unavailable(self) -> str | None:
        """Return one line saying why this machine cannot use it and what to do, or None."""

    def offered(self) -> tuple[str, ...]:
        """Return those of `precisions` that this machine's processor computes in."""
        return self.precisions

    def caution(self) -> str | None:
        """Return one line on what its INT8 scores on this machine may not tell of others, or None."""
        return None

    @abstractmethod
    def _build(self, onnx: Path, precision: str, engine_dir: Path, threads: int, batch_size: int) -> Engine: ...

    def build(
        self,
        onnx: str | os.PathLike[str],
        precision: str,
        engine_dir: str | os.PathLike[str],
        *,
        threads: int = 1,
        batch_size: int = 1,
    ) -> Engine:
        """Build an engine.

        Args:
            onnx: float model for ``"fp32"``, ``"fp16"`` and ``"bf16"``, Q/DQ model for the others.
            precision: one of `precisions`.
            engine_dir: folder for what the runtime writes; created.
            threads: CPU threads, at least 1.
            batch_size: the size to optimise for; others run too.

        Raises:
            ConfigurationError: a precision that the backend does not have, or ``threads`` or ``batch_size`` below 1.
            ExportError: the backend is unavailable here, the file is missing or empty, or the build fails.
        """
        if precision not in self.precisions:
            raise ConfigurationError(f"{self.name} engine: precision {precision!r}, expected one of {self.precisions}")
        if threads < 1 or batch_size < 1:
            raise ConfigurationError(f"{self.name} engine: threads={threads}, batch_size={batch_size}: at least 1 each")
        if (reason := self.unavailable()) is not None:
            raise ExportError(reason)
        onnx, engine_dir = Path(onnx), Path(engine_dir)
        if not onnx.is_file():
            raise ExportError(f"{self.name} engine: no ONNX file at {onnx}")
        if not onnx.stat().st_size:
            raise ExportError(f"{self.name} engine: {onnx} is empty: export the model again")
        if precision.startswith("int8") and not _quantized(onnx):
            _log.warning(
                "hqp: %s holds no quantizers: as %s it computes in float (hqp-int8 quantizes it)", onnx, precision
            )
        engine_dir.mkdir(parents=True, exist_ok=True)
        try:
            return self._build(onnx, precision, engine_dir, threads, batch_size)
        except ExportError:
            raise
        except Exception as error:  # every runtime has its own exceptions
            raise ExportError(f"{self.name} could not build {onnx} as {precision}: {error}") from error


def _quantized(onnx: Path) -> bool:
    """Whether a name of an operator that quantizes is in the file; nothing of it is parsed."""
    data = onnx.read_bytes()
    return any(name in data for name in (b"uantizeLinear", b"QLinear", b"Integer"))


def latencies(engines: Mapping[str, Engine], batch: Arrays, *, warmup: int = 10, runs: int = 100) -> dict[str, Latency]:
    """Time engines against each other: a row of ten calls of each in turn, so that the machine's drift hits all alike.

    An engine that has just taken over finds the caches full of another's weights and AMX units asleep: its first calls
    take up to twice as long (docs/how-it-works.md). A deployed engine is called in a row, and so it is timed. The order
    is new in every turn (and the same in every run): in a fixed one, another program that takes the processor at
    regular intervals can meet the same engine each time.

    Args:
        engines: by any key; the result has the same keys.
        batch: one input for all of them.
        warmup: untimed calls before each row, fewer of an engine that takes long: no further after 50 ms.
        runs: timed calls.

    Returns:
        Median and 95th percentile of one call's time, milliseconds; see `Engine.latency_ms`.

    Raises:
        ConfigurationError: ``warmup`` is negative or ``runs`` below 1.
    """
    if warmup < 0 or runs < 1:
        raise ConfigurationError(f"warmup={warmup}, runs={runs}: expected at least 0 and 1")
    times: dict[str, list[float]] = {key: [] for key in engines}
    order, generator = list(engines), random.Random(0)
    for begun in range(0, runs, _ROW):
        generator.shuffle(order)
        for key in order:
            _settle(engines[key], batch, warmup)
            times[key] += [engines[key].latency_ms(batch) for _ in range(min(_ROW, runs - begun))]
    return {
        key: Latency(median=float(np.median(t)), p95=float(np.percentile(t, 95)), runs=runs) for key, t in times.items()
    }


def _settle(engine: Engine, batch: Arrays, calls: int) -> None:
    """Untimed calls; the first of all may build things, so that its time says nothing of the others."""
    spent = 0.0
    for k in range(calls):
        elapsed = engine.latency_ms(batch)
        spent += elapsed if k else 0.0
        if spent >= _SETTLED_MS:
            return


def processor_name() -> str:
    """Return the CPU's name as its maker prints it, where the system tells."""
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "unknown CPU"


def lacks_vnni() -> bool:
    """Return whether this is an x86 CPU without VNNI, whose 16-bit sums of INT8 products may saturate.

    False where the system does not tell. ARM has no such instructions and no such problem.
    """
    flags = _cpuinfo("flags").split()
    return bool(flags) and not any("vnni" in flag for flag in flags)


def _cpuinfo(key: str) -> str:
    """The first value of a key in Linux's description of the processors, or nothing."""
    if not _CPUINFO.is_file():
        return ""
    lines = (line.partition(":") for line in _CPUINFO.read_text(errors="replace").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")
