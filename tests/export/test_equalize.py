"""Even channels: the float function stays, planted spreads do no harm, and nothing is paid where nothing has to be."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hqp_lightning.core import equalization
from hqp_lightning.export import collect_ranges, export_onnx, quantize
from hqp_lightning.export.equalize import rescale_
from hqp_lightning.export.logits import logits, noise
from hqp_lightning.export.placement import placements

SPREAD = (1.0, 10.0, 100.0, 1000.0)
ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "silu": nn.SiLU}


class Block(nn.Module):
    """An inverted residual whose expanded channels differ by ``spread``, and each matters as much as the others."""

    def __init__(self, activation, spread, offset=0.0, residual=False):
        super().__init__()
        self.expand, self.act = nn.Conv2d(8, 16, 1), ACTIVATIONS[activation]()
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False)
        self.project, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 10)
        self.residual = residual
        gains = 4 * torch.tensor(SPREAD).repeat(4) ** (np.log10(spread) / 3) / spread  # 4 / spread ... 4
        with torch.no_grad():
            nn.init.normal_(self.expand.bias)
            self.expand.weight.mul_(3 * gains[:, None, None, None])
            self.expand.bias.add_(offset).mul_(gains)
            self.depthwise.weight.div_(gains[:, None, None, None])

    def forward(self, x):
        y = self.act(self.expand(x))
        z = self.project(self.act(self.depthwise(y)))
        if self.residual:
            z = z + nn.functional.avg_pool2d(y[:, :8], 2)
        return self.head(z.mean((2, 3)))


def _file(folder, *args, seed=0, **options):
    torch.manual_seed(seed)
    path = folder / "float.onnx"
    export_onnx(Block(*args, **options), torch.zeros(1, 8, 12, 12), path)
    return path


def _batches(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(16, 8, 12, 12)).astype(np.float32) for _ in range(2)]


def _sqnr(path, ranges, folder):
    x = _batches(1)[0]
    made = onnx.load(quantize(path, ranges, folder / "int8.onnx").path)
    return -10 * np.log10(noise(logits(made, x, 1), logits(onnx.load(path), x, 1)))


def _kinds(model):
    return [n.op_type for n in model.graph.node if n.op_type != "Constant"]


@pytest.mark.parametrize("activation_type", ["int8", "uint8"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_planted_spread_costs_nothing(activation, activation_type, tmp_path):
    for spread in SPREAD:
        for seed in range(2):
            path = _file(tmp_path, activation, spread, seed=seed)
            ranges = collect_ranges(path, _batches(), activation_type=activation_type, threads=1)
            assert _sqnr(path, ranges, tmp_path) >= 20, (spread, seed)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_float_function_stays(activation, offset, residual, tmp_path):
    path = _file(tmp_path, activation, 100.0, offset=offset, residual=residual)
    ranges = collect_ranges(path, _batches(), method="max", threads=1)
    assert any(r.factors for r in ranges.values())
    model = onnx.load(path)
    placed, plain = rescale_(model, placements(path), ranges)
    onnx.checker.check_model(model, full_check=True)
    assert not any(r.factors or r.shifts for p in placed for r in [plain[p.tensor]])
    x = _batches()[0]
    assert noise(logits(model, x, 1), logits(onnx.load(path), x, 1)) < 1e-10
    if activation in ("relu", "relu6") and not residual:  # into the convolution before
        assert _kinds(model) == _kinds(onnx.load(path))


def test_factors_that_drowned_in_other_noise_come_back_with_the_rescue(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net, path = Block("relu6", 1000.0), tmp_path / "float.onnx"
    gains = torch.tensor(SPREAD).repeat(4) / 1000
    with torch.no_grad():  # uneven behind the depthwise convolution, too
        net.depthwise.weight.mul_(gains[:, None, None, None])
        net.project.weight.div_(gains[None, :, None, None])
    export_onnx(net, torch.zeros(1, 8, 12, 12), path)
    by_chance = "hqp_lightning.export.ranges.least_noise"
    monkeypatch.setattr(by_chance, lambda _path, _placed, candidates, *_rest: dict(candidates[-1]))
    assert _sqnr(path, collect_ranges(path, _batches(), threads=1), tmp_path) >= 20


def test_a_bound_that_moved_leaves_no_constant_behind(tmp_path):
    path = _file(tmp_path, "relu6", 100.0)
    ranges = collect_ranges(path, _batches(), threads=1)
    assert any(r.factors for r in ranges.values())
    graph = onnx.load(quantize(path, ranges, tmp_path / "int8.onnx").path).graph
    read = {name for node in graph.node for name in node.input}
    assert [n.output[0] for n in graph.node if n.op_type == "Constant" and n.output[0] not in read] == []


def test_values_far_from_zero_are_shifted_and_the_edges_stay_exact(tmp_path):
    path = _file(tmp_path, "hardswish", 3.0, offset=30.0, seed=1)
    ranges = collect_ranges(path, _batches(), method="max", threads=1)
    assert any(r.factors and r.shifts for r in ranges.values())
    model = onnx.load(path)
    rescale_(model, placements(path), ranges)
    assert any(n.name.endswith("_edges_add") for n in model.graph.node)
    x = _batches(1)[0]
    assert noise(logits(model, x, 1), logits(onnx.load(path), x, 1)) < 1e-10


def test_even_channels_are_left_alone(tmp_path):
    path = _file(tmp_path, "relu", 1.0)
    assert not any(r.factors for r in collect_ranges(path, _batches(), method="max", threads=1).values())


def test_the_range_of_a_channel_is_the_one_of_least_error():
    rng = np.random.default_rng(0)
    values = (rng.standard_t(4, size=(4, 3, 50, 50)) * np.array([1, 0.02, 30])[:, None, None]).astype(np.float32)
    hist = equalization.init(3)
    for part in np.split(values.repeat(2, axis=0), 4):  # of which every other sample is counted
        hist = equalization.update(hist, part)
    got = equalization.equalized(hist)
    for c, factor in enumerate(got.factors):
        v = values[:, c].ravel().astype(np.float64)

        def error(amax, v=v):
            return float(((np.clip(np.rint(v / amax * 127), -127, 127) * amax / 127 - v) ** 2).mean())

        assert error(factor * got.high) <= 1.02 * min(error(np.abs(v).max() * k / 100) for k in range(5, 101))


def test_a_channel_that_never_had_a_value_keeps_the_common_range():
    hist = equalization.update(equalization.init(2), np.array([[[4.0], [0.0]]], np.float32))
    assert equalization.equalized(hist, "max").factors == (1.0, 1.0)
