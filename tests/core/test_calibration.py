"""Ranges against numpy on the stored data, and entropy against the algorithm as TensorRT's tools write it."""

import numpy as np
import pytest
import torch

from hqp_lightning.core import calibration
from hqp_lightning.errors import ConfigurationError


def _data(kind):
    rng = np.random.default_rng(0)
    values = {
        "normal": lambda: rng.normal(0.0, 1.3, 400_000),
        "relu": lambda: np.maximum(rng.normal(-0.5, 2.0, 400_000), 0.0),
        "laplace": lambda: rng.laplace(0.0, 0.02, 400_000),
        "outliers": lambda: np.concatenate([rng.normal(0.0, 1.0, 400_000), rng.uniform(20.0, 30.0, 40)]),
    }[kind]()
    return values.astype(np.float32)


KINDS = ("normal", "relu", "laplace", "outliers")


def _stream(values, parts=7, order=1):
    hist = calibration.init()
    for part in np.array_split(values, parts)[::order]:
        hist = calibration.update(hist, torch.from_numpy(np.ascontiguousarray(part)).reshape(-1, 1))
    return hist


def _mse(values, amax):
    step = amax / 127
    quantized = np.clip(np.round(values / step), -127, 127) * step
    return float(np.mean((quantized - values) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_counts_equal_numpy(kind):
    values = np.sort(np.abs(_data(kind)))  # ascending: the range widens again and again
    hist = _stream(values, parts=40)
    expected, _ = np.histogram(values.astype(np.float64), bins=2048, range=(0.0, hist.limit))
    assert hist.counts.sum() == len(values)
    # histc works in float32, so a value on an edge may fall on its other side
    assert np.abs(hist.counts.numpy() - expected).sum() <= 1e-4 * len(values)
    assert hist.amax == values.max()
    assert hist.limit / 2 < hist.amax <= hist.limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_against_numpy(kind, percentile):
    values = _data(kind)
    expected = np.percentile(np.abs(values), percentile)
    got = calibration.compute_amax(_stream(values), "percentile", percentile=percentile)
    assert got == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_max_is_exact(kind):
    values = _data(kind)
    assert calibration.compute_amax(_stream(values), "max") == np.abs(values).max()


@pytest.mark.parametrize("kind", KINDS)
def test_mse_against_search_over_the_stored_data(kind):
    values = _data(kind)[::8]
    top = float(np.abs(values).max())
    best = min(_mse(values, top * k / 200) for k in range(1, 201))
    got = calibration.compute_amax(_stream(values), "mse")
    assert _mse(values, got) <= best * 1.01


def _tensorrt_entropy(counts, edges):
    """The search of TensorRT's calibration tools, bin by bin, in plain numpy."""
    bins = counts.astype(np.float64).copy()
    bins[0] = bins[1]
    divergences = []
    for i in range(128, len(bins) + 1):
        group = np.digitize(np.arange(i), np.linspace(0, i, 129)) - 1
        group[bins[:i] == 0] = -1
        density = np.zeros(i)
        for g in range(128):
            members = group == g
            if members.any():
                density[members] = bins[:i][members].sum() / members.sum()
        reference = bins[:i].copy()
        reference[-1] += bins[i:].sum()
        p, q = reference / reference.sum(), density / density.sum()
        nonzero = p > 0
        with np.errstate(divide="ignore"):
            divergences.append(float(np.sum(p[nonzero] * np.log(p[nonzero] / q[nonzero]))))
    last = len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    return edges[last + 128]


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_against_tensorrt_algorithm(kind):
    values = np.abs(_data(kind))
    hist = calibration.init(512)
    hist = calibration.update(hist, torch.from_numpy(values))
    used = int(np.ceil(hist.amax / hist.limit * 512))
    edges = np.linspace(0.0, hist.limit, 513)
    expected = _tensorrt_entropy(hist.counts.numpy()[:used], edges[: used + 1])
    got = calibration.compute_amax(hist, "entropy")
    assert got == pytest.approx(min(expected, hist.amax), rel=0.01)


def test_entropy_clips_outliers():
    hist = _stream(_data("outliers"))
    assert calibration.compute_amax(hist, "entropy") < 0.5 * calibration.compute_amax(hist, "max")


def test_order_and_merge_do_not_matter():
    values = np.sort(_data("laplace"))
    whole, reverse = _stream(values), _stream(values, order=-1)
    half = len(values) // 2
    merged = calibration.merge(_stream(values[:half]), _stream(values[half:]))
    for other in (reverse, merged):
        assert other.limit == whole.limit
        assert other.amax == whole.amax
        assert (other.counts - whole.counts).abs().sum() <= 1e-4 * len(values)


def test_update_leaves_its_arguments_alone():
    hist = calibration.update(calibration.init(), torch.ones(3))
    before = hist.counts.clone()
    values = torch.tensor([-5.0, 2.0])
    calibration.update(hist, values)
    assert torch.equal(hist.counts, before)
    assert hist.limit == 1.0
    assert values.tolist() == [-5.0, 2.0]


def test_memory_is_constant():
    hist = calibration.init()
    for exponent in range(-30, 30, 3):
        hist = calibration.update(hist, torch.full((10,), 2.0**exponent))
    assert hist.counts.shape == (2048,)
    assert hist.counts.sum() == 200


@pytest.mark.parametrize("method", calibration.METHODS)
def test_zeros_first_then_values(method):
    hist = calibration.update(calibration.init(), torch.zeros(50))
    assert calibration.compute_amax(hist, method) == 0.0
    assert calibration.scale(0.0) == pytest.approx(1 / 127)
    hist = calibration.update(hist, torch.full((100_000,), 3.0))
    assert calibration.compute_amax(hist, method) == pytest.approx(3.0, rel=0.01)


def test_half_precision_counts_like_float():
    values = torch.randn(1000).half()
    a, b = (calibration.update(calibration.init(), v) for v in (values, values.float()))
    assert torch.equal(a.counts, b.counts)


def test_errors_say_what_to_do():
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        calibration.update(calibration.init(), torch.tensor([1.0, float("nan")]))
    with pytest.raises(ConfigurationError, match="one of max, percentile"):
        calibration.compute_amax(calibration.init(), "kl")
    with pytest.raises(ConfigurationError, match="percentile=0"):
        calibration.compute_amax(calibration.init(), "percentile", percentile=0)
    with pytest.raises(ConfigurationError, match="nothing to compute"):
        calibration.compute_amax(calibration.init(), "max")
    with pytest.raises(ConfigurationError, match="even number"):
        calibration.init(301)
    with pytest.raises(ConfigurationError, match="512 and 256"):
        calibration.merge(calibration.init(512), calibration.init(256))
