"""ONNX to a serialized engine, on TensorRT 8.5 to 11: what a release can do is asked with ``hasattr``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hqp_lightning.board.files import write_whole
from hqp_lightning.board.library import Log
from hqp_lightning.board.network import add_profile, asked_int8, check_shape, network_flags, parse
from hqp_lightning.errors import ExportError

__all__ = ["MAX_BATCH", "PRECISIONS", "build_plan", "has_quantizers"]

PRECISIONS = ("fp32", "fp16", "int8")
MAX_BATCH = 32  # largest batch of the profile unless more is asked for


def has_quantizers(onnx: Path) -> bool:
    """Whether an ONNX file has Q/DQ nodes; their names stand in the file as plain bytes."""
    return b"QuantizeLinear" in onnx.read_bytes()


def build_plan(
    trt: Any,
    onnx: Path,
    precision: str,
    *,
    batch_size: int = 1,
    max_batch: int | None = None,
    timing_cache: Path | None = None,
    workspace_mb: int | None = None,
    optimization_level: int | None = None,
    tactic_sources: tuple[str, ...] | None = None,
    verbose: bool = False,
) -> tuple[bytes, list[str]]:
    """Build a serialized engine.

    Args:
        trt: the tensorrt module.
        onnx: in the form that the release takes, see `hqp_lightning.board.provenance.source_for`.
        precision: ``"fp32"`` (TF32 off), ``"fp16"`` or ``"int8"`` (float parts in FP16, where a flag allows it).
        batch_size: the size to optimise for.
        max_batch: the engine takes 1 to so many; ``max(batch_size, 32)`` by default.
        timing_cache: file with kernel timings, read if there and written, so that the next build is fast.
        workspace_mb: scratch memory that a layer may use, MB of 10^6 bytes; TensorRT's own default is the whole GPU.
        optimization_level: 0 (quick build) to 5 (longest search); 8.5 has none.
        tactic_sources: the libraries that kernels may come from, by the names of `trt.TacticSource`; TensorRT's own
            choice by default.
        verbose: print everything that TensorRT reports.

    Returns:
        The plan, for this GPU and this TensorRT only, and the names of the layers that the model asks to be INT8.

    Raises:
        ExportError: an unsupported operator, a driver that does not fit, too little memory, or a failed build.
        KeyboardInterrupt: Ctrl-C; before TensorRT 10 when it has returned, for it knows no way to end a build.
    """
    log = Log(trt, verbose)
    try:
        builder = trt.Builder(log.logger)
    except TypeError as error:  # pybind11's way to say that the factory returned nothing
        raise ExportError(f"TensorRT {trt.__version__} cannot start: {log.why()}") from error
    network = builder.create_network(network_flags(trt))
    parse(trt, network, log, onnx)
    check_shape(network, onnx)
    config = builder.create_builder_config()
    _set_precision(trt, config, precision)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector sees only layer names
    _set_limits(trt, config, workspace_mb, optimization_level)
    if tactic_sources is not None:
        config.set_tactic_sources(sum(1 << int(getattr(trt.TacticSource, name)) for name in tactic_sources))
    most = max(batch_size, MAX_BATCH) if max_batch is None else max_batch
    add_profile(builder, network, config, (1, batch_size, most))
    _watch(trt, config, log)
    cached = timing_cache.read_bytes() if timing_cache is not None and timing_cache.is_file() else b""
    for data in (cached, b""):  # a cache from another GPU or release is refused, an empty one always fits
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            break
    log.errors.clear()  # a refused cache reports an error too
    log.warnings.clear()
    asked = asked_int8(trt, network)
    plan = builder.build_serialized_network(network, config)
    if log.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise ExportError(f"TensorRT {trt.__version__} could not build {onnx} as {precision}: {log.why()}")
    if timing_cache is not None and (cache := config.get_timing_cache()) is not None:
        write_whole(timing_cache, bytes(cache.serialize()))
    return bytes(plan), asked


def _set_precision(trt: Any, config: Any, precision: str) -> None:
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    for name in {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}[precision]:
        if hasattr(trt.BuilderFlag, name):  # gone where networks are strongly typed: the model's own types say it all
            config.set_flag(getattr(trt.BuilderFlag, name))


def _set_limits(trt: Any, config: Any, workspace_mb: int | None, optimization_level: int | None) -> None:
    if workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb * 10**6)
    if optimization_level is None:
        return
    if not hasattr(config, "builder_optimization_level"):
        raise ExportError(f"TensorRT {trt.__version__} has no optimization levels: leave --optimization-level out")
    config.builder_optimization_level = optimization_level


def _watch(trt: Any, config: Any, log: Log) -> None:
    """Let Ctrl-C end the build, and show its progress on a terminal, where the release reports it (10 and later)."""
    if not hasattr(config, "progress_monitor"):
        return
    shown = sys.stderr.isatty()

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._show(f"{phase_name}: {step + 1}/{self._steps.get(phase_name, '?')}")
            return not log.interrupted  # False ends the build

        def phase_finish(self, phase_name: str) -> None:
            if self._steps.pop(phase_name, 0) and not self._steps:
                self._show("")

        def _show(self, text: str) -> None:
            try:
                if shown:
                    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                log.interrupted = True

    config.progress_monitor = Monitor()
