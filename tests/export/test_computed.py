"""Weights that a forward computes from parameters: stored, quantized, and read by NVIDIA's parser."""

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional as F

from hqp_lightning.export import collect_ranges, export_onnx, quantize
from hqp_lightning.export.computed import store_computed_


class Standardised(nn.Conv2d):
    """As BiT's and NFNet's: every filter has mean 0 and variance 1, which it is given by ``batch_norm``."""

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("computed")
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3, padding=1))
    network = nn.Sequential(
        Standardised(3, 16, 3, padding=1),
        nn.ReLU(),
        normed,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 16),
    ).eval()
    x = torch.randn(8, 3, 12, 12)
    export_onnx(network, x[:1], folder / "model.onnx")
    quantize(folder / "model.onnx", collect_ranges(folder / "model.onnx", [x.numpy()]), folder / "model.int8.onnx")
    return network, x, folder


def test_they_are_stored_as_what_they_come_to(files):
    network, _, folder = files
    graph = onnx.load(folder / "model.onnx").graph
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    first, second = (n for n in graph.node if n.op_type == "Conv")
    w = network[0].weight.detach().numpy()
    mean, var = w.mean((1, 2, 3), keepdims=True), w.var((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(stored[first.input[1]], (w - mean) / np.sqrt(var + 1e-6), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stored[second.input[1]], network[2].weight.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert "BatchNormalization" not in {n.op_type for n in graph.node}
    assert set(stored) == {name for n in graph.node for name in n.input} & set(stored)  # nothing is left behind


def test_they_are_quantized_and_compiled(files):
    _, _, folder = files
    int8 = onnx.load(folder / "model.int8.onnx").graph
    writers = {o: n.op_type for n in int8.node for o in n.output}
    assert all(writers[n.input[1]] == "DequantizeLinear" for n in int8.node if n.op_type == "Conv")
    trt = pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    assert trt.OnnxParser(network, logger).parse((folder / "model.int8.onnx").read_bytes())


def test_what_only_a_branch_reads_stays():
    """A weight made of stored tensors goes; a tensor that the branches of an If read from outside does not."""
    f, b = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node

    def branch(op):
        return onnx.helper.make_graph([node(op, ["y", "outside"], ["z"])], op, [], [info("z", f, [1, 2])])

    nodes = [
        node("Add", ["half", "half"], ["weight"]),
        node("MatMul", ["x", "weight"], ["y"]),
        node("If", ["which"], ["out"], then_branch=branch("Add"), else_branch=branch("Sub")),
    ]
    stored = [
        onnx.numpy_helper.from_array(np.full(s, v, np.float32), n)
        for n, s, v in (("half", (2, 2), 0.5), ("outside", (2,), 3))
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", f, [1, 2]), info("which", b, [])], [info("out", f, [1, 2])], stored
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    store_computed_(model)
    onnx.checker.check_model(model)
    assert {i.name for i in model.graph.initializer} == {"weight", "outside"}
    given = {"x": np.array([[1.0, 2.0]], np.float32), "which": np.array(True)}
    (out,) = ReferenceEvaluator(model).run(None, given)
    assert out.tolist() == [[6.0, 6.0]]
