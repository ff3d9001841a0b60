"""Ranges against numpy on the stored data, and entropy against the algorithm as TensorRT's tools write it."""

import numpy as np
import pytest

from hqp_lightning.core import calibration, histogram
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
    hist = histogram.init()
    for part in np.array_split(values, parts)[::order]:
        hist = histogram.update(hist, part.reshape(-1, 1))
    return hist


def _mse(values, amax):
    step = amax / 127
    quantized = np.clip(np.round(values / step), -127, 127) * step
    return float(np.mean((quantized - values) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_counts_equal_numpy(kind):
    values = _data(kind)[np.argsort(np.abs(_data(kind)))]  # ascending: the range widens again and again
    hist = _stream(values, parts=40)
    limit = hist.limit
    expected, _ = np.histogram(values.astype(np.float64), bins=4096, range=(-limit, limit))
    assert hist.counts.sum() == len(values)
    # counted in float32, so a value next to an edge may fall on its other side
    assert np.abs(hist.counts - expected).sum() <= 4e-4 * len(values)
    expected, _ = np.histogram(np.abs(values.astype(np.float64)), bins=2048, range=(0.0, limit))
    assert np.abs(hist.absolute - expected).sum() <= 4e-4 * len(values)
    assert (hist.low, hist.high) == (min(values.min(), 0), max(values.max(), 0))
    assert hist.amax == np.abs(values).max()
    assert limit / 2 < hist.amax <= limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_against_numpy(kind, percentile):
    values = _data(kind)
    expected = np.percentile(np.abs(values), percentile)
    got = calibration.compute_range(_stream(values), "percentile", percentile=percentile).high
    assert got == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_max_is_exact(kind):
    values = _data(kind)
    assert calibration.compute_range(_stream(values), "max").high == np.abs(values).max()


@pytest.mark.parametrize("kind", KINDS)
def test_mse_against_search_over_the_stored_data(kind):
    values = _data(kind)[::8]
    top = float(np.abs(values).max())
    best = min(_mse(values, top * k / 200) for k in range(1, 201))
    got = calibration.compute_range(_stream(values), "mse").high
    assert _mse(values, got) <= best * 1.01


def _affine_mse(values, low, high):
    """As ONNX defines QuantizeLinear and DequantizeLinear."""
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    return float(np.mean(((np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale - values) ** 2))


HARDSWISH = "hardswish"


def _any_data(kind):
    x = _data("normal") * 2
    return (x * np.clip(x + 3, 0, 6) / 6).astype(np.float32) if kind == HARDSWISH else _data(kind)


@pytest.mark.parametrize("kind", [*KINDS, HARDSWISH])
def test_uint8_mse_against_a_grid_of_both_ends_over_the_stored_data(kind):
    values = _any_data(kind)[::16]
    low, high = min(values.min(), 0.0), values.max()
    lows = [low * k / 24 for k in range(1, 25)] if low else [0.0]
    best = min(_affine_mse(values, a, high * k / 100) for a in lows for k in range(4, 101))
    got = calibration.compute_range(_stream(values), "mse", activation_type="uint8")
    assert _affine_mse(values, got.low, got.high) <= best * 1.01
    assert low <= got.low <= 0 < got.high <= high


@pytest.mark.parametrize("kind", [*KINDS, HARDSWISH])
def test_uint8_is_finer_where_one_side_is_short(kind):
    """Twice as fine behind a ReLU: a quarter of the error. No finer than int8 where both sides are alike."""
    hist, values = _stream(_any_data(kind)), _any_data(kind)
    signed, affine = (calibration.compute_range(hist, activation_type=t) for t in calibration.ACTIVATION_TYPES)
    ratio = _affine_mse(values, affine.low, affine.high) / _mse(values, signed.high)
    expected = {"relu": (0.2, 0.33), HARDSWISH: (0.2, 0.45), "outliers": (0.2, 0.45)}.get(kind, (0.9, 1.02))
    assert expected[0] < ratio < expected[1]


@pytest.mark.parametrize("kind", [*KINDS, HARDSWISH])
def test_other_methods_for_uint8_clip_what_was_seen(kind):
    values, hist = _any_data(kind), _stream(_any_data(kind))
    low, high = min(values.min(), 0.0), values.max()
    assert calibration.compute_range(hist, "max", activation_type="uint8") == calibration.Range(low, high, "uint8")
    for method in ("percentile", "entropy"):
        amax = calibration.compute_range(hist, method).high
        got = calibration.compute_range(hist, method, activation_type="uint8")
        assert (got.low, got.high) == (max(low, -amax), min(high, amax))


def test_ranges_by_hand():
    given = calibration.Range(-1.0, 254.0, "uint8")
    assert (given.scale, given.zero_point, given.integers) == (1.0, 1, (0, 255))
    given = calibration.Range.symmetric(12.7)
    assert (given.scale, given.zero_point, given.integers) == (pytest.approx(0.1), 0, (-127, 127))
    assert calibration.Range(-3.0, 0.0, "uint8").zero_point == 255


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
    hist = histogram.init(512)
    hist = histogram.update(hist, values)
    used = int(np.ceil(hist.amax / hist.limit * 512))
    edges = np.linspace(0.0, hist.limit, 513)
    expected = _tensorrt_entropy(hist.absolute[:used], edges[: used + 1])
    got = calibration.compute_range(hist, "entropy").high
    assert got == pytest.approx(min(expected, hist.amax), rel=0.01)


def test_entropy_clips_outliers():
    hist = _stream(_data("outliers"))
    assert calibration.compute_range(hist, "entropy").high < 0.5 * calibration.compute_range(hist, "max").high


def test_order_and_merge_do_not_matter():
    values = np.sort(_data("laplace"))
    whole, reverse = _stream(values), _stream(values, order=-1)
    half = len(values) // 2
    merged = histogram.merge(_stream(values[:half]), _stream(values[half:]))
    for other in (reverse, merged):
        assert other.limit == whole.limit
        assert (other.low, other.high) == (whole.low, whole.high)
        assert np.abs(other.counts - whole.counts).sum() <= 4e-4 * len(values)


def test_update_leaves_its_arguments_alone():
    hist = histogram.update(histogram.init(), np.ones(3, np.float32))
    before = hist.counts.copy()
    values = np.array([-5.0, 2.0], np.float32)
    histogram.update(hist, values)
    assert (hist.counts == before).all()
    assert hist.limit == 1.0
    assert values.tolist() == [-5.0, 2.0]


def test_memory_is_constant():
    hist = histogram.init()
    for exponent in range(-30, 30, 3):
        hist = histogram.update(hist, np.full(10, (-2.0) ** exponent, np.float32))
    assert hist.counts.shape == (4096,)
    assert hist.counts.sum() == 200


@pytest.mark.parametrize("method", calibration.METHODS)
def test_zeros_first_then_values(method):
    hist = histogram.update(histogram.init(), np.zeros(50, np.float32))
    assert calibration.compute_range(hist, method).high == 0.0
    assert calibration.compute_range(hist, method).scale == pytest.approx(1 / 254)
    assert calibration.compute_range(hist, method, activation_type="uint8").scale == pytest.approx(1 / 255)
    hist = histogram.update(hist, np.full(100_000, 3.0, np.float32))
    assert calibration.compute_range(hist, method).high == pytest.approx(3.0, rel=0.01)


def test_every_other_sample_is_counted_and_the_ends_are_of_all():
    values = np.array([[1.0, -2.0], [-9.0, 7.0], [3.0, 0.5]], np.float32)
    hist = histogram.update(histogram.init(), values, every=2)
    assert (hist.low, hist.high) == (-9.0, 7.0)
    expected, _ = np.histogram(values[::2], bins=4096, range=(-16.0, 16.0))
    assert (hist.counts == expected).all()


def test_half_precision_counts_like_float():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float16)
    a, b = (histogram.update(histogram.init(), v) for v in (values, values.astype(np.float32)))
    assert (a.counts == b.counts).all()


def test_errors_say_what_to_do():
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        histogram.update(histogram.init(), np.array([1.0, np.nan], np.float32))
    with pytest.raises(ConfigurationError, match="one of max, percentile"):
        calibration.compute_range(histogram.init(), "kl")
    with pytest.raises(ConfigurationError, match="activation_type='int4': expected one of int8, uint8"):
        calibration.compute_range(histogram.init(), activation_type="int4")
    with pytest.raises(ConfigurationError, match="percentile=0"):
        calibration.compute_range(histogram.init(), "percentile", percentile=0)
    with pytest.raises(ConfigurationError, match="nothing to compute"):
        calibration.compute_range(histogram.init(), "max")
    with pytest.raises(ConfigurationError, match="even number"):
        histogram.init(301)
    with pytest.raises(ConfigurationError, match="512 and 256"):
        histogram.merge(histogram.init(512), histogram.init(256))
