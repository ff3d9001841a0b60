"""Uneven channels in front of ordinary layers and poolings: brought back from noise, the float function stays."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hqp_lightning.export import collect_ranges, export_onnx, placements, quantize
from hqp_lightning.export.equalize import rescale_
from hqp_lightning.export.logits import logits, noise

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "silu": nn.SiLU}


class Uneven(nn.Module):
    """No depthwise convolution; channels differ by a thousand, and what reads them makes up for it."""

    def __init__(self, activation):
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3), ACTIVATIONS[activation]()
        self.head = nn.Linear(16, 10)
        gains = 4 * torch.tensor([1.0, 0.1, 0.01, 0.001]).repeat(4)
        with torch.no_grad():
            for layer in (self.a, self.b):
                layer.weight.mul_(3 * gains[:, None, None, None])
                layer.bias.normal_().mul_(gains)
            self.b.weight.div_(gains[None, :, None, None])
            self.head.weight.div_(gains)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(self.act(self.b(self.act(self.a(x)))), 1).flatten(1))


def _batch(seed):
    return np.random.default_rng(seed).normal(size=(16, 8, 8, 8)).astype(np.float32)


def _decibels(path, ranges, folder):
    x = _batch(1)
    made = onnx.load(quantize(path, ranges, folder / "int8.onnx").path)
    return -10 * np.log10(noise(logits(made, x, 1), logits(onnx.load(path), x, 1)))


@pytest.fixture(params=ACTIVATIONS)
def path(request, tmp_path):
    torch.manual_seed(0)
    export_onnx(Uneven(request.param), torch.zeros(1, 8, 8, 8), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


@pytest.mark.parametrize("activation_type", ["int8", "uint8"])
def test_planted_spreads_cost_nothing_in_front_of_any_layer(path, activation_type, tmp_path, monkeypatch):
    ranges = collect_ranges(path, [_batch(0)], activation_type=activation_type, threads=1)
    assert _decibels(path, ranges, tmp_path) >= 20
    monkeypatch.setattr("hqp_lightning.export.ranges.rescued", lambda _path, _placed, ranges, *_rest: dict(ranges))
    assert _decibels(path, collect_ranges(path, [_batch(0)], activation_type=activation_type), tmp_path) < 15


def test_the_float_function_stays(path):
    ranges = collect_ranges(path, [_batch(0)], method="max", threads=1)
    assert any(r.factors for r in ranges.values())
    model = onnx.load(path)
    rescale_(model, placements(path), ranges)
    onnx.checker.check_model(model, full_check=True)
    x = _batch(0)
    assert noise(logits(model, x, 1), logits(onnx.load(path), x, 1)) < 1e-10


def test_a_file_that_is_near_the_float_one_has_no_factors(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 9)
    )
    with torch.no_grad():
        net[0].weight[0].mul_(1e-3)  # quiet, and of no account
        net[0].bias[0] = 0
    export_onnx(net, torch.zeros(1, 8, 8, 8), tmp_path / "float.onnx")
    ranges = collect_ranges(tmp_path / "float.onnx", [_batch(0)], threads=1)
    assert not any(r.factors for r in ranges.values())
