"""The forms for other TensorRT releases compute what the artifact computes, and have the types that they promise."""

import logging
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from hqp_lightning.errors import ExportError
from hqp_lightning.export import board_files, collect_ranges, quantize
from hqp_lightning.export.forms import with_float16, with_float_weights, write_form
from hqp_lightning.export.joint import with_parted_products
from hqp_lightning.export.onnx import export_onnx


class Net(nn.Module):
    """A residual sum, a squeeze-excite gate and global pooling."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = nn.functional.hardswish(self.stem(x))
        y = self.conv(x)
        y = x + y * nn.functional.hardsigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("forms")
    path = folder / "model.onnx"
    export_onnx(Net(), torch.zeros(1, 3, 8, 8), path)
    batch = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    quantize(path, collect_ranges(path, [batch], threads=1), folder / "model.int8.onnx")
    return folder, batch


def _run(model, batch):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": batch})[0]


def test_float_weights_compute_the_same(models):
    folder, batch = models
    model = onnx.load(folder / "model.int8.onnx")
    changed = with_float_weights(model)
    onnx.checker.check_model(changed, full_check=True)
    stored = {i.name for i in changed.graph.initializer}
    assert not any(n.op_type == "DequantizeLinear" and n.input[0] in stored for n in changed.graph.node)
    assert model == onnx.load(folder / "model.int8.onnx")
    np.testing.assert_array_equal(_run(model, batch), _run(changed, batch))


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
def test_float16_computes_nearly_the_same_in_float16(models, name):
    folder, batch = models
    model = onnx.load(folder / name)
    changed = with_float16(model)
    assert model == onnx.load(folder / name)
    assert changed.opset_import[0].version == 19
    typed = onnx.shape_inference.infer_shapes(changed, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in (*typed.graph.value_info, *typed.graph.output)}
    inner = [types[out] for n in typed.graph.node for out in n.output if out != "logits"]
    assert set(inner) <= {TensorProto.FLOAT16, TensorProto.INT8, TensorProto.INT64}
    assert {i.data_type for i in changed.graph.initializer} <= {
        TensorProto.FLOAT16,
        TensorProto.INT8,
        TensorProto.INT64,
    }
    assert types["logits"] == changed.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    weights = [numpy_helper.to_array(i) for i in changed.graph.initializer if i.data_type == TensorProto.INT8]
    assert any(w.ndim == 4 for w in weights) == (name == "model.int8.onnx")

    expected = _run(model, batch)
    for got in (_run(changed, batch), ReferenceEvaluator(changed).run(None, {"input": batch})[0]):
        noise = np.square(got - expected).mean() / np.square(expected).mean()
        assert 10 * np.log10(noise) < (-50 if name == "model.onnx" else -30)  # dB; one flipped integer is some -45


class Attention(nn.Module):
    """One joint product of queries, keys and values, and one of the same width that nobody splits."""

    def __init__(self):
        super().__init__()
        self.qkv, self.wide, self.narrow = nn.Linear(16, 48), nn.Linear(16, 48), nn.Linear(48, 5)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(-1, 4, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 16)
        return self.narrow(nn.functional.gelu(self.wide(x))).mean(1)


def test_a_joint_product_is_three_that_compute_the_same(tmp_path):
    torch.manual_seed(0)
    images = torch.randn(8, 16, 2, 2).numpy()
    export_onnx(Attention().eval(), torch.zeros(1, 16, 2, 2), tmp_path / "a.onnx")
    ranges = collect_ranges(tmp_path / "a.onnx", [images], threads=1)
    quantize(tmp_path / "a.onnx", ranges, tmp_path / "b.onnx")
    for path, parts in ((tmp_path / "a.onnx", 0), (tmp_path / "b.onnx", 3)):
        model = onnx.load(path)
        parted = with_parted_products(model)
        onnx.checker.check_model(parted, full_check=True)
        made = [n for n in parted.graph.node if n.op_type == "MatMul"]
        assert len([n for n in made if "qkv/MatMul_part" in n.name]) == parts
        assert len(made) == len([n for n in model.graph.node if n.op_type == "MatMul"]) + (2 if parts else 0)
        outputs = [
            onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"input": images})[0] for m in (model, parted)
        ]
        np.testing.assert_allclose(*outputs, atol=1e-6)


def test_what_cannot_be_converted_is_one_clear_error(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match="could not write the fp16 form of"):
        write_form(tmp_path / "model.onnx", "fp16", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_board_files_are_complete_and_fresh(models, tmp_path, caplog):
    folder, _ = models
    shutil.copytree(folder, tmp_path / "deploy")
    deploy = tmp_path / "deploy"
    paths = [p.relative_to(deploy).as_posix() for p in board_files(deploy / "model.onnx", deploy / "model.int8.onnx")]
    assert paths == [
        "model.int8.onnx",
        "model.onnx",
        "tensorrt/model.int8.trt8.onnx",
        "tensorrt/model.int8.fp16.onnx",
        "tensorrt/model.fp16.onnx",
        "hqp-engine.pyz",
    ]
    assert all((deploy / p).is_file() for p in paths)
    (deploy / "model.onnx").write_bytes(b"of another run, and broken")
    with caplog.at_level(logging.WARNING):
        found = board_files(deploy / "model.onnx", deploy / "model.int8.onnx")
    assert "could not write the fp16 form" in caplog.text
    assert not (deploy / "tensorrt" / "model.fp16.onnx").exists()
    assert len(found) == 5
    found = board_files(deploy / "model.int8.onnx", deploy / "model.int8.onnx", "uint8")
    assert not list((deploy / "tensorrt").glob("model.int8.*"))  # TensorRT would not read them
    assert [p.name for p in found] == ["model.int8.onnx", "model.int8.onnx", "hqp-engine.pyz"]
