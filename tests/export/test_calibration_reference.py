"""Ranges of a real network's tensors against numpy on all of their stored values, to 1 %."""

import numpy as np
import onnx
import pytest
import sessions
import torch
import torchvision

from hqp_lightning.export import collect_ranges, export_onnx, quantized_tensors

SIZE = 48


def _batches():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(4, 3, SIZE, SIZE)).astype(np.float32) for _ in range(3)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A file of ResNet-18 and the absolute values of each quantized tensor over all batches."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("reference") / "resnet18.onnx"
    export_onnx(torchvision.models.resnet18(num_classes=10), torch.zeros(1, 3, SIZE, SIZE), path)
    names = quantized_tensors(path)
    model = onnx.load(path)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, 1, None) for n in names[1:])
    session = sessions.session(model.SerializeToString())
    runs = [(batch, *session.run(names[1:], {"input": batch})) for batch in _batches()]
    assert len(names) == 23
    return path, {n: np.abs(np.concatenate([r[k].ravel() for r in runs])) for k, n in enumerate(names)}


def _ranges(path, method, **options):
    found = collect_ranges(path, _batches(), method=method, threads=1, **options)
    assert all(r.low == -r.high for r in found.values())
    return {name: r.high for name, r in found.items()}


def test_max(stored):
    path, values = stored
    assert _ranges(path, "max") == pytest.approx({n: float(v.max()) for n, v in values.items()}, rel=1e-6)


def test_percentile(stored):
    path, values = stored
    expected = {n: float(np.percentile(v, 99.9)) for n, v in values.items()}
    assert _ranges(path, "percentile", percentile=99.9) == pytest.approx(expected, rel=0.01)


def _squared_error(values, amax):
    step = np.float32(amax / 127)
    error = np.clip(np.rint(values / step), -127, 127) * step - values
    return float(np.dot(error, error))


def test_mse(stored):
    """Every range from the largest value down to a third of it, half a per cent apart, on every value."""
    path, values = stored
    got = _ranges(path, "mse")
    for name, v in list(values.items())[::2]:
        candidates = v.max() * np.exp(-0.005 * np.arange(220))
        errors = [_squared_error(v, amax) for amax in candidates]
        assert got[name] == pytest.approx(candidates[np.argmin(errors)], rel=0.01), name
        assert _squared_error(v, got[name]) <= 1.01 * min(errors), name


def _kl_threshold(values, bins=2048):
    """TensorRT's search (S. Migacz, GTC 2017), one candidate after the other, over numpy's own histogram."""
    limit = 2.0 ** np.ceil(np.log2(values.max()))
    counts, edges = np.histogram(values.astype(np.float64), bins=bins, range=(0.0, limit))
    counts = counts[: int(np.ceil(values.max() / limit * bins))].astype(np.float64)
    counts[0] = counts[1]
    best, threshold = np.inf, 0.0
    for i in range(128, len(counts) + 1):
        p = counts[:i].copy()
        filled = p > 0
        level = np.arange(i) * 128 // i
        sums, members = np.bincount(level, p, minlength=128), np.bincount(level, filled, minlength=128)
        q = np.where(filled, (sums / np.maximum(members, 1))[level], 0.0)
        p[-1] += counts[i:].sum()
        if (q[p > 0] == 0).any():
            continue  # outliers in a bin that Q has empty: infinitely far
        p, q = p[filled] / p.sum(), q[filled] / q.sum()
        divergence = np.sum(p * np.log(p / q))
        if divergence <= best:
            best, threshold = divergence, edges[i]
    return min(threshold, float(values.max()))


def test_entropy(stored):
    path, values = stored
    got = _ranges(path, "entropy")
    for name in list(values)[::4]:
        assert got[name] == pytest.approx(_kl_threshold(values[name]), rel=0.01), name
