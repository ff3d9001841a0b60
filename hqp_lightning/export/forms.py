"""Other forms of the same ONNX model, for the TensorRT releases that do not take the artifact as it is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from hqp_lightning.errors import ExportError
from hqp_lightning.export.joint import with_parted_products
from hqp_lightning.export.squeeze_excite import with_float_gates, without_unread

__all__ = ["FORMS", "with_float16", "with_float_weights", "write_form"]

_FLOAT16_OPSET = 19  # the first whose QuantizeLinear and DequantizeLinear know float16


def write_form(onnx_path: str | os.PathLike[str], form: str, out_path: str | os.PathLike[str]) -> Path:
    """Write another form of a model, with the layers of squeeze-excite in float (`with_float_gates`).

    Args:
        onnx_path: a float or Q/DQ model.
        form: ``"trt8"`` (`with_float_weights`) or ``"fp16"`` (`with_float16`).
        out_path: the file to write; its folder is created.

    Raises:
        ExportError: the model cannot be converted.
    """
    out_path = Path(out_path)
    try:
        model = FORMS[form](with_float_gates(onnx.load(onnx_path)))
        onnx.checker.check_model(model, full_check=True)
        out_path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, out_path)
    except Exception as error:  # the converters raise many types
        raise ExportError(f"could not write the {form} form of {onnx_path}: {error}") from error
    return out_path


def with_float_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with each stored int8 weight written as float, Quantize, Dequantize; computes the same.

    TensorRT 8 refuses int8 constants ("only activation types allowed as input to this layer"); every release folds
    this form back to the same integers.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    stored = {i.name: i for i in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and (weight := stored.get(node.input[0])) is not None:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            integers = numpy_helper.to_array(weight)
            scale = numpy_helper.to_array(stored[node.input[1]])
            shape = [-1 if k == axis else 1 for k in range(integers.ndim)] if scale.ndim else []
            name = f"{weight.name}_float"
            values = integers.astype(np.float32) * scale.reshape(shape)
            graph.initializer.append(numpy_helper.from_array(values, name))
            inputs = [name, *node.input[1:]]
            nodes.append(
                helper.make_node("QuantizeLinear", inputs, [weight.name], f"{weight.name}_quantize", axis=axis)
            )
            graph.initializer.remove(weight)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def with_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with float16 weights, activations and scales behind float32 inputs and outputs, opset >= 19.

    The joint products of attention are three (`with_parted_products`).
    Where networks are strongly typed (TensorRT 11), this is how FP16 is asked for. The conversion is
    onnxruntime's; ranges beyond 65504 would overflow, as they do under TensorRT's own FP16 flag.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = without_unread(with_parted_products(model))
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    raised = version_converter.convert_version(model, _FLOAT16_OPSET) if opset < _FLOAT16_OPSET else model
    changed = convert_float_to_float16(raised, keep_io_types=True)
    OnnxModel.graph_topological_sort(changed.graph)  # the casts of the inputs stand last
    return changed


FORMS = {"trt8": with_float_weights, "fp16": with_float16}
