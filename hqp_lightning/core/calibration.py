"""Activation ranges for symmetric INT8 from streaming histograms, in constant memory.

``init`` / ``update`` / ``merge`` accumulate; ``compute_amax`` turns the sums into one clipping range. The
histogram counts ``|x|`` on ``[0, limit)`` where ``limit`` is a power of two: when a larger value arrives the
range doubles and neighbouring bins merge, so no value is ever stored, and two histograms always merge exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hqp_lightning.errors import ConfigurationError

__all__ = ["METHODS", "Histogram", "compute_amax", "init", "merge", "scale", "update"]

METHODS = ("max", "percentile", "mse", "entropy")
"""How a range is chosen from a histogram, see `compute_amax`."""
LEVELS = 127  # symmetric int8: -127 ... 127
_MSE_CANDIDATES = 256
_CHUNK = 1 << 18  # values counted at a time: few enough for the processor's cache
_LEAST_LIMIT = 2.0**-100  # bins / limit has to be a float32


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of absolute values; treat as immutable.

    Attributes:
        counts: float64 ``(bins,)``, number of values in each bin of ``[0, limit]``, of equal width.
        limit: upper end of the last bin, a power of two; 0 until a non-zero value was seen.
        amax: the largest absolute value seen, exact.
    """

    counts: Tensor
    limit: float = 0.0
    amax: float = 0.0


def init(bins: int = 2048) -> Histogram:
    """Return an empty histogram.

    Args:
        bins: number of bins, even; half of them at least cover the values seen.

    Returns:
        A histogram that has seen nothing.

    Raises:
        ConfigurationError: ``bins`` is odd or below 256 (entropy needs more bins than int8 has levels).
    """
    if bins < 256 or bins % 2:
        raise ConfigurationError(f"bins={bins}: expected an even number of at least 256, such as 2048")
    return Histogram(torch.zeros(bins, dtype=torch.float64))


def update(hist: Histogram, values: Tensor) -> Histogram:
    """Return ``hist`` with the absolute values of a tensor of any shape, dtype and device added.

    Raises:
        ConfigurationError: a value is NaN or infinite.

    Examples:
        >>> h = update(init(), torch.tensor([0.5, -3.0, 1.0]))
        >>> h.limit, h.amax, int(h.counts.sum())
        (4.0, 3.0, 3)
    """
    if values.numel() == 0:
        return hist
    flat = values.detach().flatten().float()
    low, high = (float(v) for v in flat.aminmax())
    top = max(-low, high)
    if not math.isfinite(top):
        raise ConfigurationError("calibration values contain NaN or infinity: check the model and the calibration data")
    hist = _widen(hist, _limit_for(top))
    counted = _count(flat, len(hist.counts), hist.limit or 1.0, signed=low < 0)  # zeros alone: any range will do
    return Histogram(hist.counts + counted, hist.limit, max(hist.amax, top))


def merge(a: Histogram, b: Histogram) -> Histogram:
    """Return the histogram of everything that ``a`` and ``b`` saw; exact, order does not matter.

    Raises:
        ConfigurationError: they have different numbers of bins.
    """
    if len(a.counts) != len(b.counts):
        raise ConfigurationError(f"cannot merge histograms of {len(a.counts)} and {len(b.counts)} bins")
    limit = max(a.limit, b.limit)
    return Histogram(_widen(a, limit).counts + _widen(b, limit).counts, limit, max(a.amax, b.amax))


def compute_amax(hist: Histogram, method: str = "mse", *, percentile: float = 99.99) -> float:
    """Return the symmetric clipping range; int8 values are then ``round(x / scale)`` with ``scale = amax / 127``.

    Args:
        hist: what was accumulated.
        method: ``"max"``: the largest value; ``"percentile"``: of the absolute values; ``"mse"``: the range with
            the least mean squared quantization error; ``"entropy"``: TensorRT's, the least Kullback-Leibler
            divergence between the values and their quantized ones (S. Migacz, GTC 2017).
        percentile: used by ``"percentile"``, in per cent.

    Returns:
        The range, at most the largest value seen; 0 if only zeros were seen.

    Raises:
        ConfigurationError: unknown method, percentile outside (0, 100], or nothing was seen.
    """
    if method not in METHODS:
        raise ConfigurationError(f"calibration method {method!r}: expected one of {', '.join(METHODS)}")
    if not 0.0 < percentile <= 100.0:
        raise ConfigurationError(f"percentile={percentile}: expected a number in (0, 100]")
    if not hist.counts.any():
        raise ConfigurationError("nothing to compute a range from: update() was never called with values")
    if method == "max" or hist.amax == 0.0:
        return hist.amax
    compute = {"percentile": lambda h: _percentile(h, percentile), "mse": _mse, "entropy": _entropy}[method]
    return min(compute(hist), hist.amax)


def scale(amax: float) -> float:
    """Return the float step of one int8 level, ``amax / 127``; 1/127 for a tensor that is always zero."""
    return (amax or 1.0) / LEVELS


def _count(flat: Tensor, bins: int, limit: float, *, signed: bool) -> Tensor:
    """What ``torch.histc`` of the absolute values counts, in a third of its time; exact for a power of two of bins."""
    scaled = torch.empty(min(_CHUNK, len(flat)), device=flat.device)
    index = torch.empty_like(scaled, dtype=torch.int32)
    counts = torch.zeros(bins + 1, dtype=torch.int64, device=flat.device)
    for chunk in flat.split(_CHUNK):
        part = torch.mul(chunk, bins / limit, out=scaled[: len(chunk)])
        if signed:
            part.abs_()
        counts += torch.bincount(index[: len(chunk)].copy_(part), minlength=bins + 1)
    counts[-2] += counts[-1]  # the limit itself belongs to the last bin
    return counts[:-1].double().cpu()


def _limit_for(top: float) -> float:
    """Smallest power of two that is at least ``top``; 0 for 0."""
    return 2.0 ** math.ceil(math.log2(max(top, _LEAST_LIMIT))) if top else 0.0


def _widen(hist: Histogram, limit: float) -> Histogram:
    """Double the range until it is ``limit``, merging bins pairwise."""
    if limit <= hist.limit:
        return hist
    counts = hist.counts
    if hist.limit:  # otherwise only zeros, which stay where they are
        for _ in range(round(math.log2(limit / hist.limit))):
            counts = torch.cat([counts.view(-1, 2).sum(1), counts.new_zeros(len(counts) // 2)])
    return Histogram(counts, limit, hist.amax)


def _percentile(hist: Histogram, percentile: float) -> float:
    cumulative = hist.counts.cumsum(0)
    target = cumulative[-1] * percentile / 100.0
    index = int(torch.searchsorted(cumulative, target))
    inside = float((cumulative[index] - target) / hist.counts[index].clamp(min=1.0))
    return (index + 1 - inside) * hist.limit / len(cumulative)


def _mse(hist: Histogram) -> float:
    """Search ``k/256 · amax``, then as finely between the best one's neighbours."""
    fractions = torch.arange(1, _MSE_CANDIDATES + 1, dtype=torch.float64) / _MSE_CANDIDATES
    best = _least_error(hist, hist.amax * fractions)
    near = hist.amax / _MSE_CANDIDATES
    return _least_error(hist, (best - near) + 2 * near * fractions[:: _MSE_CANDIDATES // 32])


def _least_error(hist: Histogram, amax: Tensor) -> float:
    """The candidate with the least squared quantization error, if values are spread evenly over each bin.

    With the step *s* and the level *n* = min(round(x/s), 127), ∫₀ˣ (t - q(t))² dt = n·s³/12 + (x - n·s)³/3.
    """
    edges = torch.arange(len(hist.counts) + 1, dtype=torch.float64) * (hist.limit / len(hist.counts))
    step = (amax / LEVELS).unsqueeze(1)
    level = (edges / step).round().clamp(max=LEVELS)
    integral = level * step**3 / 12 + (edges - level * step) ** 3 / 3
    return float(amax[(integral.diff(dim=1) @ hist.counts).argmin()])


def _entropy(hist: Histogram) -> float:
    """Minimise KL(P‖Q) over the candidate ranges ``[0, i)``, ``i = 128 ... last bin in use``.

    P: the first ``i`` bins, the outliers added to the last. Q: the first ``i`` bins in 128 groups, each group's
    sum spread evenly over its non-empty bins. With the sums S_g, the number n_g of non-empty bins of each group,
    q_g = S_g / n_g and the totals T (of P) and T_q (of Q):
    KL = (Σ_j p_j log p_j - Σ_g S_g log q_g - outliers * log q_last) / T - log T + log T_q,
    so that prefix sums give all candidates at once. As in TensorRT the first bin takes the second's count:
    the zeros behind a ReLU say nothing about the range.
    """
    groups = LEVELS + 1
    used = max(groups, math.ceil(hist.amax / hist.limit * len(hist.counts)))
    bins = hist.counts[:used].clone()
    bins[0] = bins[1]
    total = bins.sum()
    if total == 0:  # everything was in the first bin
        return hist.amax
    start = bins.new_zeros(1)
    mass = torch.cat([start, bins.cumsum(0)])
    filled = torch.cat([start, (bins > 0).double().cumsum(0)])
    plogp = torch.cat([start, torch.xlogy(bins, bins).cumsum(0)])
    size = torch.arange(groups, used + 1).unsqueeze(1)  # candidate i, in bins
    edges = (torch.arange(groups + 1) * size + groups - 1) // groups
    sums = mass[edges].diff(dim=1)
    level = sums / filled[edges].diff(dim=1).clamp(min=1.0)
    last, inside = bins[size[:, 0] - 1], mass[size[:, 0]]
    outliers = total - inside
    p_log_p = plogp[size[:, 0]] - torch.xlogy(last, last) + torch.xlogy(last + outliers, last + outliers)
    # Outliers in a bin where Q is zero make the divergence infinite.
    q_last = torch.where(last > 0, level[:, -1], torch.zeros_like(last))
    cross = torch.xlogy(sums, level).sum(1) + torch.xlogy(outliers, q_last)
    divergence = (p_log_p - cross) / total - total.log() + inside.log()
    divergence = torch.where(inside > 0, divergence, torch.inf)
    best = int(torch.nonzero(divergence == divergence.min())[-1])  # the widest of equals, as in TensorRT
    return (best + groups) * hist.limit / len(hist.counts)
