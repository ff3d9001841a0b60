"""Module to ONNX: opset 17, BatchNorm folded into the convolutions, dynamic batch, one file."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from hqp_lightning.core.modes import evaluating
from hqp_lightning.core.precision import exact_arithmetic
from hqp_lightning.core.recomputing import without_reentrance
from hqp_lightning.errors import ExportError
from hqp_lightning.export.artifact import BATCH, INPUT, OUTPUT, describe
from hqp_lightning.export.computed import store_computed_
from hqp_lightning.export.padding import fold_padding_
from hqp_lightning.export.sessions import session
from hqp_lightning.records import OnnxArtifact

__all__ = ["INPUT", "IR_VERSION", "OPSET", "OUTPUT", "export_onnx"]

OPSET, IR_VERSION = 17, 8  # what TensorRT 8.5 (JetPack 5) still reads; newer releases read it too


def export_onnx(
    module: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    inputs: Sequence[str] = (INPUT,),
    outputs: Sequence[str] = (OUTPUT,),
) -> OnnxArtifact:
    """Write ``module`` as an ONNX file and check that onnxruntime computes the same.

    The module comes back as it was: training flags, device, parameters and their ``requires_grad``. Works inside
    ``no_grad`` and ``inference_mode``.

    Args:
        module: takes tensors by place, returns one or a tuple of them; float32 parameters.
        example: an input, ``(batch, ...)``, on any device, or one for each of ``inputs``; their shapes matter to the
            file, and whether they are of floats or, for pictures as bytes, uint8.
        path: the file to write; its folder is created.
        opset: ONNX operator set; 17 or lower is for TensorRT 8.
        inputs: their names, in the order of the module's arguments.
        outputs: names of what it returns, in that order.

    Returns:
        The artifact's record; the batch axis, the first of every input and output, is called ``"batch"``.

    Raises:
        ExportError: the module cannot be traced, is not float32, does not return a tensor for each output, or
            the file computes something else than the module.
    """
    path = Path(path)
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if dtypes:
        raise ExportError(f"export needs float32 parameters, found {dtypes.pop()}: call .float() on a copy first")
    parameter = next(module.parameters(), None)
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    device = examples[0].device if parameter is None else parameter.device
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            evaluating(module),
            _traceable(),
            without_reentrance(),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, None, False),
            exact_arithmetic(),  # or the comparison below would blame the file for the user's TF32
        ):
            examples = tuple(_float32(x, device) for x in examples)
            batch = [_three(x) for x in examples]
            reference = _returned(module, batch, outputs)
            _trace(module, examples, path, opset, inputs, outputs)
        model = onnx.load(path)
        _inline_aliases(model.graph)
        store_computed_(model)
        fold_padding_(model)
        model.ir_version = min(model.ir_version, IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        given = {n: x.cpu().numpy() for n, x in zip(inputs, batch, strict=True)}
        _compare(path, given, {n: x.float().cpu().numpy() for n, x in zip(outputs, reference, strict=True)})
    except ExportError:
        raise
    except Exception as error:  # the exporter raises many unrelated types
        raise ExportError(f"could not export {type(module).__name__} to {path}: {_reason(error)}") from error
    return describe(path)


def _float32(x: Tensor, device: torch.device) -> Tensor:
    """On the device, floats in float32; a copy, or an inference tensor could not be traced."""
    return x.detach().to(device=device, dtype=torch.float32 if x.is_floating_point() else x.dtype, copy=True)


def _three(x: Tensor) -> Tensor:
    """The first sample and two others that follow from it."""
    x = x[:1]
    if x.dtype == torch.bool:
        return torch.cat([x, ~x, x])
    return torch.cat([x, -x, 0.5 * x] if x.is_floating_point() else [x, x // 2, x // 3])


def _returned(module: nn.Module, batch: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
    returned = module(*batch)
    found = returned if isinstance(returned, tuple) else (returned,)
    if len(found) == len(outputs) and all(isinstance(x, Tensor) for x in found):
        return found
    raise ExportError(
        f"{type(module).__name__}.forward returned {type(returned).__name__}, expected "
        f"{'one tensor of logits' if len(outputs) == 1 else f'{len(outputs)} tensors'}: wrap the model so that it "
        "returns only them"
    )


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


def _trace(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    path: Path,
    opset: int,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    # The TorchScript exporter: the newer one starts at opset 18, and its conversion down to 17 fails on the
    # ReduceMean of global pooling (torch 2.15, onnx 1.23). It is deprecated, hence exactly these filters.
    options: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based ONNX export", DeprecationWarning)
        warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)
        # Weights that are standardised by it, which are stored as what they come to.
        warnings.filterwarnings("ignore", "ONNX export mode is set to TrainingMode.EVAL", UserWarning)
        # The sides of a ZeroPad2d, turned round step by step, are stored as what they come to, too.
        warnings.filterwarnings("ignore", "Constant folding - Only steps=1", UserWarning)
        # Torch's own checks of shapes, such as GroupNorm's, which are the same for every input.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"torch\.nn\.functional")
        torch.onnx.export(
            module,
            examples,
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: {0: BATCH} for name in (*inputs, *outputs)},
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


def _compare(path: Path, batch: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> None:
    """Three samples, another batch size than was traced: a branch or a size frozen by tracing shows here."""
    if not all(np.isfinite(x).all() for x in reference.values()):
        raise ExportError(
            "the network's output is NaN or infinite in evaluation mode, so that nothing can be compared with it: a "
            "weight or a statistic of BatchNorm has diverged"
        )
    found = session(path).run(list(reference), dict(batch))
    for (name, expected), got in zip(reference.items(), found, strict=True):
        error = float(np.abs(got - expected).max()) if got.shape == expected.shape else float("inf")
        if not error <= 1e-3 * max(1.0, float(np.abs(expected).max())):
            raise ExportError(
                f"the exported file {path} computes something else than the module (output {name!r}: shapes "
                f"{got.shape} and {expected.shape}, largest difference {error:.2g}): look for Python branches or sizes "
                "in forward()"
            )
