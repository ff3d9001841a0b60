"""From the histogram of an activation to the range that eight bits cover."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hqp_lightning.core.histogram import Histogram
from hqp_lightning.errors import ConfigurationError

__all__ = ["ACTIVATION_TYPES", "LEAST_SCALE", "METHODS", "Range", "compute_range", "quantization_errors"]

METHODS = ("max", "percentile", "mse", "entropy")
"""How a range is chosen from a histogram, see `compute_range`."""
ACTIVATION_TYPES = ("int8", "uint8")
"""The integers of a `Range`: int8 is symmetric, with zero point 0; uint8 is affine."""
LEAST_SCALE = 2.0**-60
"""No scale is smaller: runtimes multiply two of them, and TensorRT's parser refuses one that is zero in float32."""

_INTEGERS = {"int8": (-127, 127), "uint8": (0, 255)}
_CANDIDATES, _FINER = 256, 32


@dataclass(frozen=True, slots=True)
class Range:
    """``[low, high]``, that holds zero, on an equidistant grid: ``x ≈ factor * scale * (q - zero_point) + shift``.

    What is rounded is ``(x - shift) / factor``, and its range is ``[low, high]``. ``factors``, ``shifts`` and the
    ``means`` of ``x`` have one for each channel, or are empty; the readers take the factors into their weights, the
    shifts into their biases (`hqp_lightning.core.equalization`), the means for `hqp_lightning.core.rounding`.

    >>> Range(-0.375, 6.0, "uint8").zero_point, Range(-2.54, 2.54).scale
    (15, 0.02)
    """

    low: float
    high: float
    activation_type: str = "int8"
    factors: tuple[float, ...] = ()
    shifts: tuple[float, ...] = ()
    means: tuple[float, ...] = ()

    @classmethod
    def symmetric(cls, amax: float) -> Range:
        """The int8 range ``[-amax, amax]``."""
        return cls(-amax, amax)

    @property
    def integers(self) -> tuple[int, int]:
        """Smallest and largest *q*; int8 leaves -128 out."""
        return _INTEGERS[self.activation_type]

    @property
    def scale(self) -> float:
        """The step of one level; of a range of width one for a tensor that is always zero."""
        smallest, largest = self.integers
        return max((self.high - self.low or 1.0) / (largest - smallest), LEAST_SCALE)

    @property
    def zero_point(self) -> int:
        """The *q* that stands for zero, exactly."""
        return 0 if self.activation_type == "int8" else round(-self.low / self.scale)


def compute_range(
    hist: Histogram, method: str = "mse", *, percentile: float = 99.99, activation_type: str = "int8"
) -> Range:
    """Choose the range that is represented; what lies beyond is clipped.

    Args:
        hist: what was accumulated.
        method: ``"max"``: all that was seen; ``"percentile"``: of the absolute values; ``"mse"``: the range with
            the least mean squared quantization error; ``"entropy"``: TensorRT's, the least Kullback-Leibler
            divergence between the absolute values and their quantized ones (S. Migacz, GTC 2017).
        percentile: used by ``"percentile"``, in per cent.
        activation_type: ``"int8"``: symmetric; ``"uint8"``: the part of the range that has values gets all levels.

    Returns:
        The range, at most what was seen; both ends 0 if only zeros were seen.

    Raises:
        ConfigurationError: unknown method or type, percentile outside (0, 100], or nothing was seen.
    """
    if method not in METHODS:
        raise ConfigurationError(f"calibration method {method!r}: expected one of {', '.join(METHODS)}")
    if activation_type not in ACTIVATION_TYPES:
        raise ConfigurationError(f"activation_type={activation_type!r}: expected one of {', '.join(ACTIVATION_TYPES)}")
    if not 0.0 < percentile <= 100.0:
        raise ConfigurationError(f"percentile={percentile}: expected a number in (0, 100]")
    if not hist.counts.any():
        raise ConfigurationError("nothing to compute a range from: update() was never called with values")
    if method == "mse" and hist.amax:
        return Range(*_mse_ends(hist), "uint8") if activation_type == "uint8" else Range.symmetric(_mse(hist))
    amax = hist.amax
    if method in ("percentile", "entropy") and amax:
        amax = min(_percentile(hist, percentile) if method == "percentile" else _entropy(hist), amax)
    if activation_type == "uint8":
        return Range(max(hist.low, -amax), min(hist.high, amax), "uint8")
    return Range.symmetric(amax)


def _percentile(hist: Histogram, percentile: float) -> float:
    counts = hist.absolute
    cumulative = counts.cumsum()
    target = cumulative[-1] * percentile / 100.0
    index = int(np.searchsorted(cumulative, target))
    inside = float(cumulative[index] - target) / max(float(counts[index]), 1.0)
    return (index + 1 - inside) * hist.limit / len(counts)


def _mse(hist: Histogram) -> float:
    """Search ``k/256 · amax``, then as finely between the best one's neighbours."""
    counts = hist.absolute
    edges = np.arange(len(counts) + 1) * (hist.limit / len(counts))

    def best_of(amax: np.ndarray) -> float:
        return float(amax[_errors(edges, counts, np.zeros_like(amax), amax, levels=127).argmin()])

    return best_of(_near(best_of(_down(hist.amax)), hist.amax))


def _mse_ends(hist: Histogram) -> tuple[float, float]:
    """Search one end while the other stays, coarsely, then finely: their errors hardly depend on each other."""
    bins = len(hist.counts) // 2
    edges = np.arange(-bins, bins + 1) * (hist.limit / bins)
    used = slice(np.flatnonzero(hist.counts)[0], np.flatnonzero(hist.counts)[-1] + 1)
    edges, counts = edges[used.start : used.stop + 1], hist.counts[used]
    low, high = hist.low, hist.high
    for finely in (False, True):
        if hist.high:
            highs = _near(high, hist.high) if finely else _down(hist.high)
            high = float(highs[_errors(edges, counts, np.full_like(highs, low), highs, levels=255).argmin()])
        if hist.low:
            lows = _near(low, hist.low) if finely else _down(hist.low)
            low = float(lows[_errors(edges, counts, lows, np.full_like(lows, high), levels=255).argmin()])
    return low, high


def _down(end: float) -> np.ndarray:
    return end * np.arange(1, _CANDIDATES + 1) / _CANDIDATES


def _near(best: float, end: float) -> np.ndarray:
    """Candidates between the neighbours of the best of `_down`, and not beyond what was seen."""
    candidates = best + end / _CANDIDATES * np.linspace(-1, 1, _FINER + 1)[1:]
    return candidates[np.abs(candidates) <= abs(end)]


def quantization_errors(edges: np.ndarray, low: np.ndarray, high: np.ndarray, *, levels: int) -> np.ndarray:
    """Squared quantization error within each bin, for each candidate range, if values are spread evenly over a bin.

    With the step *s* and the level *n* = round(x/s), kept within the integers, the error's integral over *x* is
    ∫₀ˣ (t - n(t)·s)² dt = n·s³/12 + (x - n·s)³/3.

    Args:
        edges: of the bins, ``(bins + 1,)``.
        low: ``(candidates,)``, at most 0.
        high: ``(candidates,)``.
        levels: the largest integer minus that of ``low``.

    Returns:
        ``(candidates, bins)``, for one value a bin and up to the width of the bins.
    """
    return np.array([_bin_errors(edges, *ends, levels) for ends in zip(low, high, strict=True)])


def _errors(edges: np.ndarray, counts: np.ndarray, low: np.ndarray, high: np.ndarray, *, levels: int) -> np.ndarray:
    return np.array([counts @ _bin_errors(edges, *ends, levels) for ends in zip(low, high, strict=True)])


def _bin_errors(edges: np.ndarray, low: float, high: float, levels: int) -> np.ndarray:
    step = (high - low) / levels
    zero = round(-low / step)
    level = np.rint(edges / step).clip(-zero, levels - zero)
    rest = edges - level * step
    return np.diff(level * (step**3 / 12) + rest * rest * rest / 3)


def _entropy(hist: Histogram) -> float:
    """Minimise KL(P‖Q) over the candidate ranges ``[0, i)`` of the absolute values, ``i = 128 ... last bin in use``.

    P: the first ``i`` bins, the outliers added to the last. Q: the first ``i`` bins in 128 groups, each group's
    sum spread evenly over its non-empty bins. With the sums S_g, the number n_g of non-empty bins of each group,
    q_g = S_g / n_g and the totals T (of P) and T_q (of Q):
    KL = (Σ_j p_j log p_j - Σ_g S_g log q_g - outliers * log q_last) / T - log T + log T_q,
    so that prefix sums give all candidates at once. As in TensorRT the first bin takes the second's count:
    the zeros behind a ReLU say nothing about the range.
    """
    groups, absolute = 128, hist.absolute
    used = max(groups, math.ceil(hist.amax / hist.limit * len(absolute)))
    bins = absolute[:used].copy()
    bins[0] = bins[1]
    total = bins.sum()
    if total == 0:  # everything was in the first bin
        return hist.amax
    mass, filled, plogp = (np.concatenate([[0.0], np.cumsum(v)]) for v in (bins, bins > 0, _xlogx(bins)))
    size = np.arange(groups, used + 1)  # candidate i, in bins
    edges = (np.arange(groups + 1) * size[:, None] + groups - 1) // groups
    sums = np.diff(mass[edges], axis=1)
    level = sums / np.maximum(np.diff(filled[edges], axis=1), 1.0)
    last, inside = bins[size - 1], mass[size]
    outliers = total - inside
    p_log_p = plogp[size] - _xlogx(last) + _xlogx(last + outliers)
    cross = (sums * _log(level)).sum(1) + outliers * _log(level[:, -1])
    with np.errstate(divide="ignore"):
        divergence = (p_log_p - cross) / total - np.log(total) + np.log(inside)
    # Outliers in a bin where Q is zero are infinitely far; and there is no Q without values.
    divergence[((outliers > 0) & (last == 0)) | (inside == 0)] = np.inf
    best = int(np.flatnonzero(divergence == divergence.min())[-1])  # the widest of equals, as in TensorRT
    return float((best + groups) * hist.limit / len(absolute))


def _log(x: np.ndarray) -> np.ndarray:
    return np.log(np.where(x > 0, x, 1.0))


def _xlogx(x: np.ndarray) -> np.ndarray:
    return x * _log(x)
