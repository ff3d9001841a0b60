"""Streaming histograms of activations, in constant memory.

``init`` / ``update`` / ``merge`` accumulate. The bins span ``[-limit, limit]``, where ``limit`` is a power of two: when
a value beyond it arrives the range doubles and neighbouring bins merge, so no value is ever stored, and two
histograms always merge exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hqp_lightning.errors import ConfigurationError

__all__ = ["Histogram", "init", "merge", "update"]

_CHUNK = 1 << 16  # values counted at a time: few enough for the processor's cache
_LEAST_LIMIT = 2.0**-100  # bins / limit has to be a float32


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of values; treat as immutable.

    Attributes:
        counts: float64 ``(2 * bins,)``, number of values in each bin of ``[-limit, limit]``, of equal width.
        limit: upper end of the last bin, a power of two; 0 until a non-zero value was seen.
        low: the smallest value seen, or 0 if that is smaller; exact.
        high: the largest value seen, or 0 if that is larger; exact.
    """

    counts: np.ndarray
    limit: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @property
    def amax(self) -> float:
        """The largest absolute value seen, exact."""
        return max(-self.low, self.high)

    @property
    def absolute(self) -> np.ndarray:
        """Counts of the absolute values, float64 ``(bins,)`` on ``[0, limit]``."""
        negative, positive = np.split(self.counts, 2)
        return negative[::-1] + positive


def init(bins: int = 2048) -> Histogram:
    """Return an empty histogram.

    Args:
        bins: number of bins on either side of zero, even; half of them at least cover the values seen.

    Returns:
        A histogram that has seen nothing.

    Raises:
        ConfigurationError: ``bins`` is odd or below 256 (entropy needs more bins than int8 has levels).
    """
    if bins < 256 or bins % 2:
        raise ConfigurationError(f"bins={bins}: expected an even number of at least 256, such as 2048")
    return Histogram(np.zeros(2 * bins))


def update(hist: Histogram, values: np.ndarray, every: int = 1) -> Histogram:
    """Return ``hist`` with the values of an array of any shape and floating dtype added.

    The ends are of all values, the counts of every so many-th sample, along the first axis.

    Raises:
        ConfigurationError: a value is NaN or infinite.

    Examples:
        >>> h = update(init(), np.array([0.5, -3.0, 1.0], np.float32))
        >>> h.limit, h.low, h.high, int(h.counts.sum())
        (4.0, -3.0, 1.0, 3)
    """
    if values.size == 0:
        return hist
    values = np.ascontiguousarray(values, dtype=np.float32)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigurationError("calibration values contain NaN or infinity: check the model and the calibration data")
    hist = _widen(hist, _limit_for(max(-low, high)))
    flat = (values[::every] if every > 1 else values).reshape(-1)
    counted = _count(flat, len(hist.counts) // 2, hist.limit or 1.0, signed=low < 0)  # zeros alone: any range will do
    return Histogram(hist.counts + counted, hist.limit, min(hist.low, low), max(hist.high, high))


def merge(a: Histogram, b: Histogram) -> Histogram:
    """Return the histogram of everything that ``a`` and ``b`` saw; exact, order does not matter.

    Raises:
        ConfigurationError: they have different numbers of bins.
    """
    if len(a.counts) != len(b.counts):
        raise ConfigurationError(
            f"cannot merge histograms of {len(a.counts) // 2} and {len(b.counts) // 2} bins a side"
        )
    limit = max(a.limit, b.limit)
    counts = _widen(a, limit).counts + _widen(b, limit).counts
    return Histogram(counts, limit, min(a.low, b.low), max(a.high, b.high))


def _count(flat: np.ndarray, bins: int, limit: float, *, signed: bool) -> np.ndarray:
    """What ``np.histogram`` counts, in a third of its time; float32: a value next to an edge may fall beyond it."""
    scaled = np.empty(min(_CHUNK, len(flat)), np.float32)
    index = np.empty_like(scaled, dtype=np.int32)
    first = bins if signed else 0
    counts = np.zeros(first + bins + 1, np.int64)
    for start in range(0, len(flat), _CHUNK):
        chunk = flat[start : start + _CHUNK]
        part = np.multiply(chunk, np.float32(bins / limit), out=scaled[: len(chunk)])
        if signed:
            part += np.float32(first)
        whole = index[: len(chunk)]
        np.copyto(whole, part, casting="unsafe")
        counts += np.bincount(whole, minlength=len(counts))
    counts[-2] += counts[-1]  # the limit itself belongs to the last bin
    return np.concatenate([np.zeros(bins - first), counts[:-1]])


def _limit_for(top: float) -> float:
    """Smallest power of two that is at least ``top``; 0 for 0."""
    return 2.0 ** math.ceil(math.log2(max(top, _LEAST_LIMIT))) if top else 0.0


def _widen(hist: Histogram, limit: float) -> Histogram:
    """Double the range until it is ``limit``, merging bins pairwise."""
    if limit <= hist.limit:
        return hist
    counts, quarter = hist.counts, np.zeros(len(hist.counts) // 4)
    if hist.limit:  # otherwise only zeros, which stay where they are
        for _ in range(round(math.log2(limit / hist.limit))):
            counts = np.concatenate([quarter, counts.reshape(-1, 2).sum(1), quarter])
    return Histogram(counts, limit, hist.low, hist.high)
