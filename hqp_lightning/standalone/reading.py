"""ONNX files of other exporters, read into the form that this package's own export writes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper, inliner

from hqp_lightning.errors import ExportError
from hqp_lightning.export.artifact import BATCH, INPUT, OUTPUT, describe
from hqp_lightning.export.padding import fold_padding_
from hqp_lightning.standalone.batching import free_batch_
from hqp_lightning.standalone.folding import fold_batchnorm_, fold_constants_, pool_
from hqp_lightning.standalone.tidying import drop_aliases_, name_nodes_, sort_nodes_, widen_

__all__ = ["OPSETS", "Reading", "read_model"]

OPSETS = (13, 22)
"""The first has quantizers with a scale for each channel."""
_QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "DynamicQuantizeLinear",
)
_BRANCHES = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class Reading:
    """A model in our form. ``changes`` says what was done, one phrase each; without any the file is ours as it is.

    ``batch`` is the only batch size that the original takes; None: any. ``half``: it computed in float16.
    """

    model: onnx.ModelProto
    opset: int
    changes: tuple[str, ...] = ()
    batch: int | None = None
    half: bool = False


def read_model(path: Path, *, size: tuple[int, int] | None = None, quantized: bool = False) -> Reading:
    """Read a file, and bring it into the form that quantizing needs; what the network computes stays.

    Float32 weights as initializers, nodes with unique names, BatchNormalization in the convolution before, poolings as
    such, a free batch axis. Whether it does compute the same is for the caller to look at, on images.

    Args:
        path: a classifier of one input and one output.
        size: height and width, for a file that leaves them open.
        quantized: take Q/DQ files, too.

    Raises:
        ExportError: what can't be handled, in one line.
    """
    if not path.is_file():
        raise ExportError(f"no ONNX file at {path}")
    model, outside = _load(path)
    opset = _opset(path, model)
    if not outside and _ours(model):
        _refuse(path, model, quantized)
        describe(path)
        return Reading(model, opset)
    changes = _counted(outside, "tensor", "read from other files")
    if model.functions:
        model = inliner.inline_local_functions(model)
        changes.append("functions inlined")
    _refuse(path, model, quantized)
    sort_nodes_(model)
    if len(model.graph.input) > len(inputs := _inputs(model.graph)):  # the IR of old, where weights are inputs
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        changes.append("weights are no inputs")
    half = widen_(model)
    changes += ["float16 made float32"] if half else []
    changes += _counted(fold_constants_(model, opset), "constant node", "made a stored tensor")
    drop_aliases_(model)
    changes += _counted(fold_batchnorm_(model), "BatchNormalization", "folded")
    changes += _counted(fold_padding_(model), "Pad", "made the convolution's own")
    batch, found = free_batch_(path, model, size)
    changes += found
    changes += _counted(pool_(model), "ReduceMean", "made GlobalAveragePool")
    changes += _counted(name_nodes_(model), "node", "named")
    del model.graph.value_info[:]
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ExportError(f"{path} is no valid ONNX model: {str(error).strip().splitlines()[0]}") from error
    return Reading(model, opset, tuple(changes), batch, half)


def _load(path: Path) -> tuple[onnx.ModelProto, int]:
    """The model, and how many of its tensors lay in other files."""
    try:
        model = onnx.load(path, load_external_data=False)
        outside = sum(bool(i.external_data) for i in model.graph.initializer)
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # of protobuf, or of external data that is not there
        raise ExportError(f"{path} is not a readable ONNX file: {str(error).strip().splitlines()[0]}") from error
    if not model.graph.node:  # protobuf reads nothing, or a few bytes of anything, as a message without fields
        size = path.stat().st_size
        raise ExportError(f"{path} is {'empty (0 bytes)' if not size else f'no ONNX model: {size} bytes, no node'}")
    return model, outside


def _ours(model: onnx.ModelProto) -> bool:
    """Whether it is a file of this package's export: such a one is taken byte for byte."""
    graph = model.graph
    if [i.name for i in graph.input] != [INPUT] or [o.name for o in graph.output] != [OUTPUT]:
        return False
    dims = graph.input[0].type.tensor_type.shape.dim
    named = {n.name for n in graph.node} - {""}
    whole = len(named) == len(graph.node) and all(d.dim_value for d in dims[1:])
    kinds = {graph.input[0].type.tensor_type.elem_type, *(i.data_type for i in graph.initializer)}
    half = onnx.TensorProto.FLOAT16 in kinds
    return bool(dims) and dims[0].dim_param == BATCH and whole and not half and model.ir_version <= 8


def _opset(path: Path, model: onnx.ModelProto) -> int:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    first, last = OPSETS
    if not first <= opset <= last:
        raise ExportError(
            f"{path} has opset {opset}, expected {first} to {last}: export it again with another, or convert it with "
            "onnx.version_converter.convert_version(model, 17)"
        )
    return opset


def _refuse(path: Path, model: onnx.ModelProto, quantized: bool) -> None:
    """One line for what nothing here could make work."""
    nodes = list(model.graph.node)
    strange = Counter(f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in ("", "ai.onnx"))
    if strange:
        raise ExportError(f"{path} has operators that are not ONNX's own: {', '.join(sorted(strange)[:4])}")
    if found := sorted({n.op_type for n in nodes} & set(_BRANCHES)):
        raise ExportError(f"{path} has branches or loops ({', '.join(found)}): export it with them resolved")
    if not quantized and (found := sorted({n.op_type for n in nodes} & set(_QUANTIZED))):
        raise ExportError(f"{path} is quantized already ({', '.join(found)}): give the float model")
    inputs = _inputs(model.graph)
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise ExportError(
            f"{path} has {len(inputs)} inputs and {len(model.graph.output)} outputs, expected one of each: "
            "pictures, and logits"
        )
    known = onnx.TensorProto
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in (known.FLOAT, known.FLOAT16, known.UINT8):
        raise ExportError(f"{path} takes {helper.tensor_dtype_to_string(kind)}, expected float32, float16 or uint8")
    wide = sorted({i.name for i in model.graph.initializer if i.data_type in (known.DOUBLE, known.BFLOAT16)})
    if wide:
        raise ExportError(f"{path} has weights of float64 or bfloat16 ({wide[0]}): export it in float32")


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    stored = {i.name for i in graph.initializer}
    return [i for i in graph.input if i.name not in stored]


def _counted(count: int, what: str, done: str) -> list[str]:
    plural = "" if count == 1 or what[0].isupper() else "s"
    return [f"{count} {what}{plural} {done}"] if count else []
