"""Padding in front of convolutions, as TensorFlow's "same" brings it: in the file it is the convolution's own."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hqp_lightning.core.calibration import Range
from hqp_lightning.export import export_onnx, placements, quantize
from hqp_lightning.export.padding import fold_padding_


@pytest.fixture(scope="module")
def mobile(tmp_path_factory):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU6(),
        nn.ZeroPad2d((1, 2, 0, 3)),
        nn.Conv2d(8, 8, 5, stride=2, padding=1, groups=8),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()
    path = tmp_path_factory.mktemp("padding") / "model.onnx"
    x = torch.randn(4, 3, 16, 16)
    export_onnx(network, x[:1], path)  # and warns of nothing
    return network, x, path


def test_it_is_the_convolutions_own_and_the_function_stays(mobile):
    network, x, path = mobile
    graph = onnx.load(path).graph
    pads = [list(a.ints) for n in graph.node if n.op_type == "Conv" for a in n.attribute if a.name == "pads"]
    assert pads == [[0, 0, 1, 1], [1, 2, 4, 3]]  # top, left, bottom, right, with the 1 that the second has itself
    assert not {"Pad", "ConstantOfShape", "Slice", "Transpose"} & {n.op_type for n in graph.node}
    found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(found, network(x).detach().numpy(), atol=1e-5)


def test_factors_go_back_through_what_stood_there(mobile, tmp_path):
    """Into the convolution before: no multiplication is left in front of the depthwise one."""
    *_, path = mobile
    placed = placements(path)
    ranges = {p.tensor: Range.symmetric(2.0) for p in placed}
    ranges[placed[1].tensor] = Range(-2.0, 2.0, factors=(1.0, 0.5, 0.25, 0.125, 0.5, 0.5, 0.5, 0.5))
    quantize(path, ranges, tmp_path / "q.onnx")
    assert "Mul" not in {n.op_type for n in onnx.load(tmp_path / "q.onnx").graph.node}


@pytest.mark.parametrize("kept", ["of ones", "mirrored", "negative", "of channels", "read by another", "none"])
def test_other_padding_stays(kept):
    """Hand-made: opset 17, the sizes stored, two convolutions that read it."""
    pads = {"negative": [0, 0, -1, 0, 0, 0, 0, 0], "of channels": [0, 1, 0, 0, 0, 1, 0, 0]}.get(kept, [0, 0, 1, 0] * 2)
    channels = 4 if kept == "of channels" else 2
    w = np.random.default_rng(0).normal(size=(3, channels, 3, 3)).astype(np.float32)
    stored = {"pads": np.array(pads), "value": np.float32(kept == "of ones"), "w": w, "v": w[:2]}
    mode = "reflect" if kept == "mirrored" else "constant"
    nodes = [
        helper.make_node("Pad", ["x", "pads", "value"], ["padded"], "pad", mode=mode),
        helper.make_node("Conv", ["padded", "w"], ["y"], "first", auto_pad="VALID"),
        helper.make_node("Conv", ["padded", "v"], ["z"], "second", pads=[1, 0, 0, 0]),
    ]
    outputs = ["y", "z"]
    if kept == "read by another":
        nodes.append(helper.make_node("Relu", ["padded"], ["r"], "relu"))
        outputs.append("r")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 8, 8])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(v, k) for k, v in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = {"x": np.random.default_rng(1).normal(size=(2, 2, 8, 8)).astype(np.float32)}

    def answers():
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, x)

    before = answers()
    assert fold_padding_(model) == (kept == "none")
    assert ("Pad" in {n.op_type for n in model.graph.node}) == (kept != "none")
    for one, other in zip(before, answers(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
