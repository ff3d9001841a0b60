"""What Int8Export says of placement arrives in the file and in the list of layers."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from hqp_lightning import Int8Export, export
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.export import Range, export_onnx
from hqp_lightning.export.engines import OnnxRuntimeBackend
from hqp_lightning.records import Verdict
from hqp_lightning.shipping.quantizing import quantize_within


def _network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Hardswish(), SqueezeExcitation(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, set()),
        ({"quantize_hardswish": True}, {"HardSwish"}),
        ({"quantize_se": True}, {"GlobalAveragePool", "Mul"}),
    ],
)
def test_placement_options(given, expected, tmp_path):
    torch.manual_seed(0)
    artifact = export_onnx(_network(), torch.zeros(1, 3, 8, 8), tmp_path / "model.onnx")
    batch = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    options = Int8Export(tmp_path, threads=1, **given).options

    def measure(int8):
        return OnnxRuntimeBackend().build(int8.path, "int8", tmp_path), Verdict(True, 1.0, 1.0, 0.0, 0.01, "")

    made = quantize_within(artifact, lambda: iter([batch]), measure, tmp_path / "int8.onnx", options, 0)
    made.engine.close()
    model = onnx.load(made.artifact.path)
    kinds = {n.name: n.op_type for n in model.graph.node}
    always = ["Conv", "Conv", "Conv", "Gemm", "GlobalAveragePool"]
    assert sorted(kinds[q.layer] for q in made.layers) == sorted([*always, *expected])
    assert all(q.noise > 0 for q in made.layers)
    dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    reading = {n.op_type for n in model.graph.node if dequantized & set(n.input)}
    assert reading - {"QuantizeLinear"} == {*always, *expected}


@pytest.mark.parametrize("name", ["quantize_hardswish", "quantize_se"])
def test_anything_but_a_bool_is_refused(name, tmp_path):
    with pytest.raises(ConfigurationError, match=rf"{name}='yes' is not known"):
        Int8Export(tmp_path, **{name: "yes"})


def test_a_bool_is_no_number_of_batches(tmp_path):
    with pytest.raises(ConfigurationError, match="calibration_batches=True must be an integer"):
        Int8Export(tmp_path, calibration_batches=True)


def test_uint8_is_refused_where_tensorrt_is_asked_for(tmp_path):
    with pytest.raises(ConfigurationError, match=r"engines=\['tensorrt'\] do not read activation_type='uint8'"):
        Int8Export(tmp_path, activation_type="uint8", engines=["tensorrt", "openvino"])
    with pytest.raises(ConfigurationError, match="activation_type='int4' is not known; choose one of"):
        Int8Export(tmp_path, activation_type="int4")


@pytest.mark.parametrize(
    ("ruined", "given", "in_float", "hint"),
    [
        (False, {"placement": "all"}, 0, None),
        (True, {"placement": "all", "method": "max"}, 8, 'method="max": try "mse"'),
        (True, {"placement": "all"}, 8, 'placement="all" quantizes thin and depthwise layers, too: try "paying"'),
        (True, {}, 0, "With max_float_layers=0 no layer may go back"),
        (True, {}, 8, "up to max_float_layers=8 of them go back to float"),
    ],
)
def test_a_ruined_file_is_told_before_its_score(ruined, given, in_float, hint, tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = _network()
    nn.init.zeros_(network[-1].bias)  # the logits are what the image makes of them
    artifact = export_onnx(network, torch.zeros(1, 3, 8, 8), tmp_path / "model.onnx")
    batch = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    # all layers of this network are thin: by the default placement none would be INT8
    monkeypatch.setattr("hqp_lightning.shipping.quantizing.left_in_float", lambda *_: ())
    if ruined:  # all that is below 300 / 254 is zero
        true = export.collect_ranges
        monkeypatch.setattr(
            export, "collect_ranges", lambda *a, **k: dict.fromkeys(true(*a, **k), Range.symmetric(300))
        )

    def measure(int8):
        return OnnxRuntimeBackend().build(int8.path, "int8", tmp_path), Verdict(True, 1.0, 1.0, 0.0, 0.01, "")

    options = Int8Export(tmp_path, threads=1, **given).options
    made = quantize_within(artifact, lambda: iter([batch]), measure, tmp_path / "int8.onnx", options, in_float)
    made.engine.close()
    assert (made.warning is not None) == ruined
    if made.warning is not None:
        assert "dB on calibration images" in made.warning
        assert "/5/Gemm (" in made.warning
        assert hint in made.warning
        assert "docs/int8.md" in made.warning
