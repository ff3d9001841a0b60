"""``hqp-engine build``: an engine for this machine's GPU, or for those of other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hqp_lightning.board.build import has_quantizers
from hqp_lightning.board.cuda import Cuda
from hqp_lightning.board.library import import_tensorrt
from hqp_lightning.board.make import make
from hqp_lightning.board.provenance import activation_type, form_file, source_for, verify
from hqp_lightning.board.rtx import check_capabilities, compile_rtx, rtx_path
from hqp_lightning.errors import ExportError

__all__ = ["build"]


def build(
    onnx: Path,
    engine: Path,
    precision: str | None = None,
    batch_size: int = 1,
    max_batch: int | None = None,
    timing_cache: Path | None = None,
    workspace: int | None = None,
    optimization_level: int | None = None,
    rtx: tuple[str, ...] | None = None,
    verbose: bool = False,
) -> list[str]:
    """Build ``engine`` and its note from a model of an export folder; return the lines to show.

    With ``rtx`` one engine for each of the compute capabilities, by TensorRT for RTX, without a GPU.

    Raises:
        ExportError: no GPU or TensorRT, a file that is not the manifest's, or a build that fails; an ``engine`` that
            was there is left as it was.
    """
    said = [verify(onnx)]
    quantized = has_quantizers(onnx)
    precision = precision or ("int8" if quantized else "fp16")
    if (precision == "int8") != quantized:
        wanted = "a model with Q/DQ nodes, such as model.int8.onnx" if precision == "int8" else "the float model.onnx"
        raise ExportError(f"precision {precision} takes {wanted}; {onnx.name} is not one")
    if quantized and (kind := activation_type(onnx)) != "int8":
        raise ExportError(
            f"{onnx.name} has {kind} activations, for CPUs; TensorRT reads int8: export it with "
            "activation_type='int8', or build model.onnx in FP16"
        )
    if batch_size < 1 or (max_batch is not None and max_batch < batch_size):
        raise ExportError(f"batch size {batch_size}, largest {max_batch}: expected 1 <= batch size <= largest")
    if engine.resolve() == onnx.resolve():
        raise ExportError(f"the engine would overwrite the model {onnx}: name another file, such as model.engine")
    limits = {"workspace_mb": workspace, "optimization_level": optimization_level}
    if workspace is not None and workspace < 1:
        raise ExportError(f"workspace of {workspace} MB: expected at least 1")
    if rtx is not None:
        if timing_cache is not None or any(value is not None for value in limits.values()):
            raise ExportError("--rtx compiles without timing kernels: leave timing cache, workspace and level out")
        return [*said, *_for_others(onnx, engine, precision, batch_size, max_batch, rtx)]
    cuda = Cuda()  # the driver first: without a GPU trt.Runtime ends the process (8.6)
    trt = import_tensorrt()
    source = source_for(trt, onnx, precision)
    if source != onnx:
        said += [f"TensorRT {trt.__version__} builds from {source}", verify(source)]
    options: dict[str, Any] = {"batch_size": batch_size, "max_batch": max_batch, "verbose": verbose, **limits}
    made = make(trt, cuda, source, engine, precision, timing_cache=timing_cache, **options)
    made.engine.close()
    return [*said, *made.lines(), f"wrote {engine} ({engine.stat().st_size / 1e6:.1f} MB) and {engine.name}.json"]


def _for_others(
    onnx: Path, engine: Path, precision: str, batch_size: int, max_batch: int | None, capabilities: tuple[str, ...]
) -> list[str]:
    """One engine for each compute capability; one that is refused does not cost the others."""
    check_capabilities(capabilities)
    source = onnx if precision == "fp32" else form_file(onnx, "fp16", precision, "TensorRT for RTX")
    said = [] if source == onnx else [f"TensorRT for RTX compiles from {source}", verify(source)]
    refused = []
    for capability in capabilities:
        path = rtx_path(engine, capability)
        try:
            made = compile_rtx(source, path, capability, batch_size=batch_size, max_batch=max_batch)
            said += [made.line(), *made.warnings()]
        except ExportError as error:
            refused.append(str(error))
    if len(refused) == len(capabilities):
        raise ExportError("; ".join(dict.fromkeys(refused)))
    return [*said, *(f"warning: {text}" for text in refused)]
