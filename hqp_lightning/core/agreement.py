"""How one tensor departs from another, channel by channel: by noise, by factors, by shifts, or by their order.

``init`` / ``update`` accumulate sums; all else follows from these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Agreement", "init", "order", "update"]

_LEAST = 1e-300
_CONSTANT = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """Sums over the values of two tensors, float64 ``(channels,)`` each; treat as immutable.

    Attributes:
        count: values of a channel.
        a: sum of the first's values.
        b: sum of the second's.
        aa: sum of squares.
        bb: sum of squares.
        ab: sum of products.
    """

    count: int
    a: np.ndarray
    b: np.ndarray
    aa: np.ndarray
    bb: np.ndarray
    ab: np.ndarray

    @property
    def noise(self) -> float:
        """Squared error over the first's signal: 10^-4 is 40 dB."""
        return float(self.error.sum() / max(self.aa.sum(), _LEAST))

    @property
    def error(self) -> np.ndarray:
        """Squared error of each channel."""
        return np.maximum(self.bb - 2 * self.ab + self.aa, 0.0)

    @property
    def factors(self) -> np.ndarray:
        """Of the least squares fit ``b = factor * a + shift``."""
        spread = self.aa - self.a**2 / self.count
        return np.where(
            spread > 1e-12 * self.aa, (self.ab - self.a * self.b / self.count) / np.maximum(spread, _LEAST), 1
        )

    @property
    def shifts(self) -> np.ndarray:
        """Of the same fit."""
        return (self.b - self.factors * self.a) / self.count

    @property
    def unexplained(self) -> np.ndarray:
        """Squared error of each channel that the fit leaves."""
        covariance = self.ab - self.a * self.b / self.count
        return np.maximum(self.bb - self.b**2 / self.count - self.factors * covariance, 0.0)


def init() -> Agreement:
    """Return sums of nothing; the first `update` sets the number of channels."""
    nothing = np.zeros(1)
    return Agreement(0, nothing, nothing, nothing, nothing, nothing)


def update(sums: Agreement, a: np.ndarray, b: np.ndarray) -> Agreement:
    """Return the sums with two arrays ``(batch, channels, ...)`` added.

    >>> s = update(init(), np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 2.0], [6.0, 4.0]]))
    >>> s.factors.tolist(), s.shifts.tolist(), s.unexplained.tolist(), s.error.tolist()
    ([2.0, 1.0], [0.0, 0.0], [0.0, 0.0], [10.0, 0.0])
    """
    first, second = (_by_channel(x) for x in (a, b))
    return Agreement(
        sums.count + first.shape[1],
        sums.a + first.sum(1),
        sums.b + second.sum(1),
        sums.aa + (first * first).sum(1),
        sums.bb + (second * second).sum(1),
        sums.ab + (first * second).sum(1),
    )


def order(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """Which channel of ``a`` each channel of ``b`` is like, if that is a permutation that moves some; else None.

    >>> x = np.random.default_rng(0).normal(size=(4, 3, 5))
    >>> order(x, x[:, [1, 0, 2]]).tolist(), order(x, x)
    ([1, 0, 2], None)
    """
    first, second = (_by_channel(x) for x in (a, b))
    first, second = (x - x.mean(1, keepdims=True) for x in (first, second))
    first, second = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _LEAST) for x in (first, second))
    alike = second @ first.T
    best = alike.argmax(1)
    moved = best != np.arange(len(best))
    own = alike[np.arange(len(best)), np.arange(len(best))]
    sure = alike.max(1)[moved] > 0.9
    if not moved.any() or len(set(best)) < len(best) or not sure.all() or (own[moved] > 0.9).any():
        return None
    return best


def _by_channel(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(*x.shape[:2], -1) if x.ndim > 1 else x.reshape(len(x), 1, 1)
    return np.moveaxis(flat.astype(np.float64), 1, 0).reshape(flat.shape[1], -1)
