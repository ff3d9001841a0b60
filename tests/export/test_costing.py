"""The order in which layers go to float: noise against what files with them in float take."""

import numpy as np
import pytest
import torch
from torch import nn

from hqp_lightning.core.calibration import Range
from hqp_lightning.core.mixed_precision import by_worth
from hqp_lightning.export import costing, export_onnx, float_order, placements
from hqp_lightning.export.costing import in_a_row
from hqp_lightning.export.engines import Backend, Engine


class _Fake(Backend):
    """Engines that only note which convolutions of the file are quantized."""

    name, precisions = "fake", ("int8",)

    def unavailable(self):
        return None

    def _build(self, onnx, precision, engine_dir, threads, batch_size):
        return _FakeEngine("fake", precision, "none", threads, str(onnx))


class _FakeEngine(Engine):
    closed = 0

    def run(self, batch):
        return batch

    def close(self):
        _FakeEngine.closed += 1


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.head((x + self.c(x)).mean((2, 3)))


def test_the_noise_for_a_millisecond_decides_and_pairs_in_a_row_are_tried(tmp_path, monkeypatch):
    torch.manual_seed(0)
    export_onnx(_Net(), torch.zeros(1, 4, 8, 8), tmp_path / "m.onnx")
    a, b, c, head = [p.node for p in placements(tmp_path / "m.onnx") if p.weight_axis is not None]
    assert in_a_row(tmp_path / "m.onnx", [a, b, c, head]) == [(a, b), (b, c)]  # the sum stands between c and the head
    prices = {(a,): 4.0, (b,): 4.0, (c,): 1.0, (head,): -1.0, (a, b): 3.0, (b, c): 5.0}
    seen, x = [], np.zeros((1, 4, 8, 8))

    def timed(engines, batch):
        seen.extend(engines)
        assert batch.shape == (1, 4, 8, 8)
        return {unit: prices[unit] for unit in engines if unit}, 20.0

    monkeypatch.setattr(costing, "float_costs_ms", timed)
    ranges = {p.tensor: Range.symmetric(1.0) for p in placements(tmp_path / "m.onnx")}
    noise = {a: 4e-3, b: 3e-3, c: 2e-3, head: 1e-3}
    order, costs = float_order(tmp_path / "m.onnx", ranges, noise, 2, _Fake(), x)
    assert order == [a, b, c, head]  # (4 + 3) / 3 together; c: 2 / 1; the head: 1 / 1, no less than a twentieth of 20
    assert costs == {(unit[0]): ms for unit, ms in prices.items() if len(unit) == 1}
    assert seen[0] == ()
    assert _FakeEngine.closed == len(seen) == 7
    del prices[a, b]
    monkeypatch.setattr(costing, "in_a_row", lambda *_: [])
    assert float_order(tmp_path / "m.onnx", ranges, noise, 2, _Fake(), x, exclude=[b])[0] == [
        c,
        a,
        head,
    ]
    assert float_order(tmp_path / "m.onnx", ranges, noise, 1, _Fake(), x)[0] == [
        a,
        b,
        c,
        head,
    ]  # the others by noise


def test_costs_are_the_difference_to_the_file_without(monkeypatch):
    clock = iter(np.arange(1000.0))

    class Engine:
        def __init__(self, ticks):
            self.ticks = ticks

        def run(self, _):
            for _ in range(self.ticks):
                next(clock)

    monkeypatch.setattr(costing.time, "process_time", lambda: next(clock))
    costs, call = costing.float_costs_ms({(): Engine(1), ("a",): Engine(3), ("b",): Engine(0)}, np.zeros(1))
    assert (costs, call) == ({("a",): 2000.0, ("b",): -1000.0}, 2000.0)


@pytest.mark.parametrize("busy", [False, True])
def test_a_noisy_clock_does_not_change_the_order(busy, monkeypatch):
    """Readings are off by 2 %, on a busy machine by 6, with interruptions and a third of the turns half as fast."""
    rng, now, calls = np.random.default_rng(0), [0.0], [0]

    class Engine:
        def __init__(self, ms):
            self.ms = ms

        def run(self, _):
            calls[0] += 1
            slow = 1.5 if busy and calls[0] // len(engines) % 3 == 0 else 1.0
            held = 3.0 if busy and rng.random() < 0.05 else 1.0
            now[0] += 1e-3 * self.ms * slow * held * rng.normal(1, 0.06 if busy else 0.02)

    noise = {"a": 5.0, "b": 4.0, "c": 3.5, "d": 3.0, "e": 1.0}  # the first costs 40 % of a call, others next to nothing
    extra = {("a",): 0.4, ("b",): 0.02, ("c",): -0.01, ("d",): 0.015, ("e",): 0.0, ("a", "b"): 0.41}
    engines = {(): Engine(1.0), **{unit: Engine(1.0 + ms) for unit, ms in extra.items()}}
    monkeypatch.setattr(costing.time, "process_time", lambda: now[0])
    for _ in range(30):
        costs, call = costing.float_costs_ms(engines, np.zeros(1))
        assert by_worth(noise, costs, costing._COIN * call) == ["b", "c", "d", "e", "a"]
        assert costs["a",] == pytest.approx(0.4, rel=0.2)
