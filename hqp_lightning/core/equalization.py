"""One factor for each channel of an activation, so that all of its channels use the whole of one range of integers.

A tensor has one scale, and the channels in front of a depthwise convolution may differ by orders of magnitude: then a
quiet channel has a handful of levels, or none. Divide channel *c* by a factor f_c and multiply the depthwise weights of
that channel by it: the same function, and the weights, which have a scale for each channel, lose nothing (the idea of
cross-layer equalization, Nagel et al., arXiv 1906.04721, at the one place where it costs no accuracy elsewhere).

``init`` / ``update`` accumulate what `equalized` chooses the factors from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hqp_lightning.core.calibration import Range, quantization_errors

__all__ = ["ChannelHistogram", "equalized", "init", "offset", "shifted", "update"]

_BINS = 512
_CANDIDATES = 256
_FLOOR = 1e-4  # of the loudest channel: a weight's scale has to stay a sane float32
_FAR = 0.4
_LEAST = 2.0**-100  # a channel that never exceeds it counts as zero: bins over less overflow float32
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class ChannelHistogram:
    """Counts of absolute values, channel by channel; treat as immutable.

    Attributes:
        counts: uint32 ``(channels, bins)``, on ``[0, limit]`` of each channel.
        limit: float64 ``(channels,)``, powers of two; 0 until a non-zero value was seen.
        low: ``(channels,)``, the smallest value seen.
        high: ``(channels,)``, the largest.
    """

    counts: np.ndarray
    limit: np.ndarray
    low: np.ndarray
    high: np.ndarray


def init(channels: int) -> ChannelHistogram:
    """Return an empty histogram of ``channels`` channels."""
    nothing = np.full(channels, np.inf)
    return ChannelHistogram(np.zeros((channels, _BINS), np.uint32), np.zeros(channels), nothing, -nothing)


def update(hist: ChannelHistogram, values: np.ndarray) -> ChannelHistogram:
    """Return ``hist`` with an array ``(batch, channels, ...)`` of finite float32 added.

    The ends are of all samples, the counts of every other one, which are enough for a shape and take half of the time.

    >>> h = update(init(2), np.array([[0.5, -3.0], [1.0, 0.0]], np.float32))
    >>> h.limit.tolist(), h.low.tolist(), h.high.tolist(), h.counts.sum(1).tolist()
    ([1.0, 4.0], [0.5, -3.0], [1.0, 0.0], [1, 1])
    """
    flat = values.reshape(*values.shape[:2], -1)
    low = np.minimum(hist.low, flat.min(axis=(0, 2)))
    high = np.maximum(hist.high, flat.max(axis=(0, 2)))
    top = np.maximum(-low, high)
    live = top > _LEAST
    limit = np.where(live, 2.0 ** np.ceil(np.log2(np.where(live, top, 1.0))), 0.0)
    counts = _widened(hist, limit)
    channels = len(limit)
    scale = (_BINS / np.where(limit > 0, limit, 1.0)).astype(np.float32)
    first = (_BINS * np.arange(channels, dtype=np.int64))[:, None]
    step = max(1, _CHUNK // flat.shape[2])  # channels at a time, in the processor's cache
    for sample in flat[::2]:
        for start in range(0, channels, step):
            part = slice(start, start + step)
            index = np.abs(sample[part] * scale[part, None]).astype(np.int32)
            np.minimum(index, _BINS - 1, out=index)  # the limit itself belongs to the last bin
            index += (first[part] - first[start]).astype(np.int32)
            found = np.bincount(index.reshape(-1), minlength=len(index) * _BINS)
            counts[part] += found.reshape(-1, _BINS).astype(np.uint32)
    return ChannelHistogram(counts, limit, low, high)


def _widened(hist: ChannelHistogram, limit: np.ndarray) -> np.ndarray:
    """A copy of the counts on wider ranges: bins merge pairwise."""
    counts = hist.counts.copy()
    grown = np.flatnonzero(hist.limit)
    doublings = np.zeros(len(limit), int)
    doublings[grown] = np.rint(np.log2(limit[grown] / hist.limit[grown])).astype(int)
    for channel in np.flatnonzero(doublings):
        for _ in range(min(doublings[channel], int(np.log2(_BINS)))):
            merged = counts[channel].reshape(-1, 2).sum(1, dtype=np.uint32)
            counts[channel] = np.concatenate([merged, np.zeros_like(merged)])
    return counts


def equalized(
    hist: ChannelHistogram,
    method: str = "mse",
    *,
    percentile: float = 99.99,
    activation_type: str = "int8",
    power: float = 1.0,
    centre: bool = False,
) -> Range:
    """The factors f_c = ± (r_c / max r)^power and the range of x_c / f_c, where r_c is the range of channel *c* alone.

    A channel that never had a value has the factor 1: whatever comes there later is represented as it would be without
    factors. With ``uint8`` a channel that is more negative than positive is turned over: all have one long side.

    Args:
        hist: what was accumulated.
        method: as of `hqp_lightning.core.calibration.compute_range`; ``"entropy"`` takes ``"mse"`` within a channel.
        percentile: for ``"percentile"``.
        activation_type: ``"int8"`` or ``"uint8"``.
        power: 1: every channel gets all levels; smaller: the factors are milder.
        centre: int8, power 1: shift every channel by its middle, too, so that r_c is half of what it covers.

    Returns:
        The range, with its ``factors``.
    """
    amax = np.maximum(-hist.low, hist.high)
    own = _own_ranges(hist, amax, method, percentile, levels=127 if activation_type == "int8" else 255)
    top = float(own.max())
    if top == 0:
        return Range(0.0, 0.0, activation_type)
    if centre:
        return _centred(hist, own)
    factors = np.where(own > 0, np.maximum(own / top, _FLOOR) ** power, 1.0)
    if activation_type == "int8":
        return Range(-top, top, factors=tuple(factors.tolist()))
    turned = -hist.low > hist.high
    factors = np.where(turned, -factors, factors)
    least = min(float(np.minimum(hist.low / factors, hist.high / factors).min()), 0.0)
    return Range(max(least, -top), top, "uint8", factors=tuple(factors.tolist()))


def offset(hist: ChannelHistogram) -> float:
    """The part of the channels whose values lie on one side of zero and not near it: there a shift wins most."""
    width = (hist.high - hist.low) / 2
    return float(np.mean(width < _FAR * np.maximum(-hist.low, hist.high)))


def _centred(hist: ChannelHistogram, own: np.ndarray) -> Range:
    low, high = hist.low, hist.high  # of the values here, which need not have zero between them
    low, high = np.maximum(low, -own), np.minimum(high, own)
    half = (high - low) / 2
    half = np.where(half > 0, half, np.maximum(own, own.max() * _FLOOR))
    top = float(half.max())
    factors = np.maximum(half / top, _FLOOR)
    step = factors * top / 127
    shifts = np.rint((high + low) / 2 / step) * step
    return Range(-top, top, factors=tuple(factors.tolist()), shifts=tuple(shifts.tolist()))


def shifted(affine: Range, low: np.ndarray, high: np.ndarray) -> Range:
    """Shifts s_c and a symmetric int8 range of ``x_c - s_c`` that covers what was seen of every channel.

    Half of the widest channel's range is enough for all, or half of ``affine``, which clips outliers, if that is less.
    A channel is shifted no further than it has to be, and by whole steps: zero, the commonest value, stays exact.

    Args:
        affine: the uint8 range of the whole tensor.
        low: ``(channels,)``, the smallest value seen.
        high: ``(channels,)``, the largest.

    >>> shifted(Range(-0.5, 2.04, "uint8"), np.array([-0.5, 0.0]), np.array([0.0, 2.04]))
    Range(low=-1.02, high=1.02, activation_type='int8', factors=(), shifts=(0.0, 1.02), means=())
    """
    middle = (affine.high + affine.low) / 2
    half = min(float((high - low).max()), affine.high - affine.low) / 2
    if half == 0:
        return Range.symmetric(0.0)
    step = half / 127
    fits = high - low <= 2 * half
    least = np.clip(0.0, np.where(fits, high - half, middle), np.where(fits, low + half, middle))
    return Range(-half, half, shifts=tuple((np.rint(least / step) * step).tolist()))


def _own_ranges(hist: ChannelHistogram, amax: np.ndarray, method: str, percentile: float, levels: int) -> np.ndarray:
    if method == "max":
        return amax
    if method == "percentile":
        target = hist.counts.sum(1, keepdims=True) * percentile / 100.0
        index = (hist.counts.cumsum(1) < target).sum(1)
        return np.minimum((index + 1) / _BINS * hist.limit, amax)
    edges = np.arange(_BINS + 1) / _BINS
    ends = np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    # Bins are the same part of every channel's limit, so that one product has all errors.
    errors = quantization_errors(edges, np.zeros_like(ends), ends, levels=levels)
    best = ends[(hist.counts.astype(np.float32) @ errors.T.astype(np.float32)).argmin(1)]
    return np.minimum(best * hist.limit, amax)
