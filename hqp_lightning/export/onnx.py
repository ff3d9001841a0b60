"""Module to ONNX: opset 17, BatchNorm folded into the convolutions, dynamic batch, one file."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from hqp_lightning.core.precision import exact_arithmetic
from hqp_lightning.errors import ExportError
from hqp_lightning.export.artifact import BATCH, INPUT, OUTPUT, describe
from hqp_lightning.records import OnnxArtifact

__all__ = ["INPUT", "IR_VERSION", "OPSET", "OUTPUT", "export_onnx"]

OPSET, IR_VERSION = 17, 8  # what TensorRT 8.5 (JetPack 5) still reads; newer releases read it too


def export_onnx(
    module: nn.Module, example: Tensor, path: str | os.PathLike[str], *, opset: int = OPSET
) -> OnnxArtifact:
    """Write ``module`` as an ONNX file and check that onnxruntime computes the same.

    The module comes back as it was: training flags, device, parameters and their ``requires_grad``. Works inside
    ``no_grad`` and ``inference_mode``.

    Args:
        module: takes one tensor, returns one tensor ``(batch, classes)``; float32 parameters.
        example: an input, ``(batch, ...)``, on any device; its shape matters to the file, and whether it is of floats
            or, for pictures as bytes, uint8.
        path: the file to write; its folder is created.
        opset: ONNX operator set; 17 or lower is for TensorRT 8.

    Returns:
        The artifact's record: input ``"input"``, output ``"logits"``, batch axis ``"batch"``.

    Raises:
        ExportError: the module cannot be traced, is not float32, does not return one tensor, or the file
            computes something else than the module.
    """
    path = Path(path)
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if dtypes:
        raise ExportError(f"export needs float32 parameters, found {dtypes.pop()}: call .float() on a copy first")
    parameter = next(module.parameters(), None)
    device = example.device if parameter is None else parameter.device
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            _evaluating(module),
            _traceable(),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, None, False),
            exact_arithmetic(),  # or the comparison below would blame the file for the user's TF32
        ):
            # Cloned here, or an inference tensor could not be traced.
            dtype = torch.float32 if example.is_floating_point() else example.dtype
            example = example.detach().to(device=device, dtype=dtype, copy=True)
            others = (
                (-example[:1], 0.5 * example[:1]) if dtype == torch.float32 else (example[:1] // 2, example[:1] // 3)
            )
            batch = torch.cat([example[:1], *others])
            reference = module(batch)
            if not isinstance(reference, Tensor):
                raise ExportError(
                    f"{type(module).__name__}.forward returned {type(reference).__name__}, expected one tensor of "
                    "logits: wrap the model so that it returns only them"
                )
            _trace(module, example, path, opset)
        model = onnx.load(path)
        _inline_aliases(model.graph)
        model.ir_version = min(model.ir_version, IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        _compare(path, batch.cpu().numpy(), reference.float().cpu().numpy())
    except ExportError:
        raise
    except Exception as error:  # the exporter raises many unrelated types
        raise ExportError(f"could not export {type(module).__name__} to {path}: {_reason(error)}") from error
    return describe(path)


def _reason(error: Exception) -> str:
    """What is said, without the value in the graph and the invitation to report it that may follow."""
    said = str(error).strip().splitlines()
    if not said:
        return type(error).__name__
    return said[0].partition("  [Caused by")[0].partition(" Please feel free")[0].rstrip(" .")


@contextmanager
def _traceable() -> Iterator[None]:
    """Attention layers compute step by step, for their one operator has no form in ONNX; failures print no graph."""
    fast, internals = torch.backends.mha.get_fastpath_enabled(), vars(torch._C)
    log = internals.get("_jit_onnx_log")
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        internals["_jit_onnx_log"] = lambda *_: None
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        internals["_jit_onnx_log"] = log


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own flag back afterwards (frozen BatchNorm differs from the rest)."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in flags:
            submodule.training = training


def _trace(module: nn.Module, example: Tensor, path: Path, opset: int) -> None:
    # The TorchScript exporter: the newer one starts at opset 18, and its conversion down to 17 fails on the
    # ReduceMean of global pooling (torch 2.15, onnx 1.23). It is deprecated, hence exactly these filters.
    options: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based ONNX export", DeprecationWarning)
        warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)
        # Torch's own checks of shapes, such as GroupNorm's, which are the same for every input.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"torch\.nn\.functional")
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
            opset_version=opset,
            do_constant_folding=True,  # with eval mode, this folds BatchNorm into the convolutions
            **options,
        )


def _inline_aliases(graph: onnx.GraphProto) -> None:
    """Remove Identity nodes of initializers (the exporter shares equal ones so); parsers want weights directly."""
    stored = {i.name for i in graph.initializer}
    alias: dict[str, str] = {}
    for node in graph.node:  # topological order, so chains resolve
        if node.op_type == "Identity" and (source := alias.get(node.input[0], node.input[0])) in stored:
            alias[node.output[0]] = source
    kept = [n for n in graph.node if n.output[0] not in alias]
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = alias.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)


def _compare(path: Path, batch: np.ndarray, expected: np.ndarray) -> None:
    """Three samples, another batch size than was traced: a branch or a size frozen by tracing shows here."""
    import onnxruntime

    if not np.isfinite(expected).all():
        raise ExportError(
            "the network's output is NaN or infinite in evaluation mode, so that nothing can be compared with it: a "
            "weight or a statistic of BatchNorm has diverged"
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {INPUT: batch})
    error = float(np.abs(got - expected).max()) if got.shape == expected.shape else float("inf")
    if not error <= 1e-3 * max(1.0, float(np.abs(expected).max())):
        raise ExportError(
            f"the exported file {path} computes something else than the module (shapes {got.shape} and "
            f"{expected.shape}, largest difference {error:.2g}): look for Python branches or sizes in forward()"
        )
