"""Files of other exporters: what is read computes what the network does, and can be quantized; else one clear line."""

import numpy as np
import onnx
import pytest
import sessions
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from hqp_lightning.errors import ExportError
from hqp_lightning.export import collect_ranges, quantize
from hqp_lightning.export.logits import logits, noise
from hqp_lightning.standalone.reading import read_model


def unnamed(model):
    for node in model.graph.node:
        node.name = ""
    return model


def constants_as_nodes(model):
    """As some converters write weights."""
    graph = model.graph
    nodes = [helper.make_node("Constant", [], [i.name], value=i) for i in graph.initializer]
    del graph.initializer[:]
    nodes += list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def weights_as_inputs(model):
    """As files of the oldest IR have them."""
    graph = model.graph
    graph.input.extend(helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in graph.initializer)
    return model


def half(model):
    return convert_float_to_float16(model)


def half_weights(model):
    """Float32 inputs and outputs, with casts."""
    return convert_float_to_float16(model, keep_io_types=True)


def the_first_opset(model):
    """Nothing that the network consists of has changed since, as this package writes it."""
    model.opset_import[0].version = 13
    return unnamed(model)


def the_last_opset(model):
    return unnamed(onnx.version_converter.convert_version(model, 22))


def open_sizes(model):
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return model


EDITS = [unnamed, constants_as_nodes, weights_as_inputs, half, half_weights, open_sizes, the_last_opset]
CASES = [(kind, edit) for kind in ("own_file", "dynamo_file") for edit in EDITS] + [("own_file", the_first_opset)]


def check(path, network, digits, tmp_path, size=None):
    """Reference: the network itself, in torch."""
    reading = read_model(path, size=size)
    x = digits[0][1200:1264]
    with torch.no_grad():
        expected = network(x).numpy()
    session = sessions.session(reading.model.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected, atol=2e-2 if reading.half else 1e-4)
    onnx.save(reading.model, tmp_path / "read.onnx")
    ranges = collect_ranges(tmp_path / "read.onnx", [x.numpy()], threads=1)
    int8 = quantize(tmp_path / "read.onnx", ranges, tmp_path / "int8.onnx")
    assert noise(logits(onnx.load(int8.path), x.numpy()), logits(reading.model, x.numpy())) < 10**-2.5
    quantized = [n for n in onnx.load(int8.path).graph.node if n.op_type in ("Conv", "Gemm", "GlobalAveragePool")]
    assert len(quantized) == 5
    assert all(n.input[0].endswith("_dq") for n in quantized)
    return reading


@pytest.mark.parametrize(("kind", "edit"), CASES, ids=lambda e: getattr(e, "__name__", e))
def test_variants_compute_the_same(kind, edit, request, network, digits, tmp_path):
    onnx.save(edit(onnx.load(request.getfixturevalue(kind))), tmp_path / "model.onnx")
    reading = check(tmp_path / "model.onnx", network, digits, tmp_path, size=(8, 8) if edit is open_sizes else None)
    assert reading.changes
    assert reading.half == (edit in (half, half_weights))


def test_dynamo_is_brought_into_form(dynamo_file, network, digits, tmp_path):
    reading = check(dynamo_file, network, digits, tmp_path)
    operators = [n.op_type for n in reading.model.graph.node]
    assert operators[:3] == ["Conv", "Relu", "Conv"]
    assert not {"BatchNormalization", "ReduceMean", "Constant", "Shape"} & set(operators)
    assert reading.batch == 2
    assert "2 BatchNormalization folded" in reading.changes


def test_external_data(dynamo_file, network, digits, tmp_path):
    onnx.save(onnx.load(dynamo_file), tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)
    assert len(list(tmp_path.iterdir())) == 2
    check(tmp_path / "model.onnx", network, digits, tmp_path)
    next(p for p in tmp_path.iterdir() if p.suffix != ".onnx").unlink()
    with pytest.raises(ExportError, match="not a readable ONNX file"):
        read_model(tmp_path / "model.onnx")


def test_our_own_file_is_taken_as_it_is(own_file):
    assert read_model(own_file).changes == ()


def test_a_mean_without_its_axes_is_a_pooling_and_a_flatten(tmp_path):
    """Reference: numpy."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[-2, -1], keepdims=0)]
    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(1, 2, 3, 4)
    save(tmp_path, nodes, [1, 2, 3, 4], [1, 2])
    reading = read_model(tmp_path / "model.onnx")
    assert [n.op_type for n in reading.model.graph.node] == ["GlobalAveragePool", "Flatten"]
    session = sessions.session(reading.model.SerializeToString())
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x.mean((2, 3)))


def save(folder, nodes, inputs, outputs, stored=(), opset=17, kind=TensorProto.FLOAT):
    """One graph by hand."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, inputs)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, outputs) for n in dict.fromkeys(nodes[-1].output)],
        list(stored),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, folder / "model.onnx")


RELU = helper.make_node("Relu", ["x"], ["y"])
SCALE = numpy_helper.from_array(np.float32(1), "s")


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([RELU], {"opset": 11}, "has opset 11, expected 13 to 22"),
        ([helper.make_node("Fused", ["x"], ["y"], domain="com.microsoft")], {}, "not ONNX's own: com.microsoft.Fused"),
        ([helper.make_node("QuantizeLinear", ["x", "s"], ["y"])], {"stored": [SCALE]}, "is quantized already"),
        ([helper.make_node("Split", ["x"], ["y", "z"], axis=1)], {}, "1 inputs and 2 outputs"),
        ([RELU], {"kind": TensorProto.DOUBLE}, "takes TensorProto.DOUBLE, expected float32"),
        ([RELU], {"inputs": ["n", 2, "h", "w"]}, "leaves its size open: say which with --size"),
        ([RELU], {"inputs": [4]}, "has 1 axes"),
        (
            [helper.make_node("If", ["c"], ["y"], then_branch=helper.make_graph([], "a", [], []))],
            {},
            "branches or loops",
        ),
    ],
)
def test_refusals_are_one_line(nodes, options, expected, tmp_path):
    options = {"inputs": [1, 2, 4, 4], "outputs": None, **options}
    save(tmp_path, nodes, **options)
    with pytest.raises(ExportError, match=expected) as caught:
        read_model(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_no_file_and_another_file(tmp_path):
    with pytest.raises(ExportError, match="no ONNX file"):
        read_model(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_text("a page\n of text")
    with pytest.raises(ExportError, match="not a readable ONNX file"):
        read_model(tmp_path / "model.onnx")
