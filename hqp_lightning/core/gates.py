"""Squeeze-excite gates: what one multiplies with, and what its mean in the place of that would cost.

A gate gives back its input times a factor *s* for each channel and sample. With *d* = ∂L/∂s, which is the sum of
*x* · ∂L/∂y over positions, the Fisher value of what it does beyond its mean is
*F* = 1/*N* Σₙ (Σ_c *d_c* (*s_c* - s̄_c))² = 1/*N* Σₙ (*u* - *d* · s̄)², with *u* = Σ_c *d_c s_c*: one row (*u*, *d*) per
sample gives it for whatever mean the factors of all samples turn out to have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hqp_lightning.core.taps import Receiver

__all__ = ["Factors", "GatePass", "GateSums", "factors_of"]


def factors_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What a gate multiplied with, ``(N, C)``, by least squares over positions; and where ``x`` is zero, so is it.

    Args:
        x: the gate's input, ``(N, C, ...)``.
        y: its output.

    Returns:
        The factors, and whether the channel was alive in the sample, so that it has one.

    Examples:
        >>> x = torch.tensor([[[[1.0, 2.0]], [[0.0, 0.0]]]])
        >>> factors_of(x, 3 * x)
        (tensor([[3., 0.]]), tensor([[ True, False]]))
    """
    x, y = (t.flatten(2).to(torch.promote_types(t.dtype, torch.float32)) for t in (x, y))
    energy = x.square().sum(2)
    alive = energy != 0  # also what is no number: that is seen then
    return torch.where(alive, (x * y).sum(2) / energy.where(alive, torch.ones_like(energy)), 0.0), alive


@dataclass(frozen=True)
class Factors:
    """A gate's factors over samples, in float64.

    Attributes:
        total: their sum, ``(C,)``.
        count: in how many samples a channel had one, ``(C,)``.
    """

    total: Tensor
    count: Tensor

    @classmethod
    def of(cls, factors: Tensor, alive: Tensor) -> Factors:
        """Those of one call, as `factors_of` gives them; samples with one that is not finite are left out."""
        alive = alive & factors.isfinite().all(1, keepdim=True)
        return cls(factors.where(alive, torch.zeros_like(factors)).double().sum(0), alive.double().sum(0))

    def __add__(self, other: Factors) -> Factors:
        """Of both, for batches as for ranks."""
        return Factors(self.total + other.total, self.count + other.count)

    def mean(self) -> Tensor:
        """Float32 ``(C,)``; a channel that was zero in all samples gets the mean of the others.

        Examples:
            >>> Factors(torch.tensor([6.0, 0.0]), torch.tensor([2.0, 0.0])).mean()
            tensor([3., 3.])
        """
        others = self.total.sum() / self.count.sum() if self.count.any() else torch.ones_like(self.total).mean()
        return torch.where(self.count > 0, self.total / self.count.clamp(min=1), others).float()


@dataclass(frozen=True)
class GateSums:
    """What a gate's Fisher value is made of, for any mean.

    Attributes:
        factors: of all samples.
        rows: ``(n, 1 + C)``: one row (*u*, *d*) per sample; of many samples as few rows with the same ``rowsᵀ rows``.
    """

    factors: Factors
    rows: Tensor

    @classmethod
    def none(cls, channels: int) -> GateSums:
        """Of a gate that no sample has passed."""
        return cls(Factors(*torch.zeros(2, channels, dtype=torch.float64)), torch.zeros(0, 1 + channels))

    def __add__(self, other: GateSums) -> GateSums:
        """Of both; at most twice as many rows as columns are kept, whatever the number of samples."""
        rows = torch.cat([self.rows, other.rows])
        if len(rows) > 2 * rows.shape[1]:
            # QᵀQ = 1: the same sums of products, without the errors of their squares.
            rows = torch.linalg.qr(rows, mode="r").R
        return GateSums(self.factors + other.factors, rows)

    def squares(self, mean: Tensor) -> Tensor:
        """Σₙ (*u* - *d* · ``mean``)², ``(1,)``."""
        weights = torch.cat([mean.new_ones(1), -mean]).to(self.rows.device, torch.float64)
        return (self.rows.double() @ weights).square().sum().to(self.rows.dtype).view(1)


class GatePass:
    """What one pass shows of a gate, over all of its calls."""

    def __init__(self) -> None:
        self.factors: Factors | None = None
        self.rows: Tensor | None = None

    def see(self, x: Tensor, y: Tensor) -> Receiver:
        """A call; gives who receives its gradient at ``y``."""
        factors, alive = factors_of(x, y)
        seen = Factors.of(factors, alive)
        self.factors = seen if self.factors is None else self.factors + seen
        return partial(self._receive, factors)

    def _receive(self, factors: Tensor, name: str, x: Tensor, grad: Tensor, scale: float) -> None:
        d = (x * grad).flatten(2).sum(2) * scale
        rows = torch.cat([(d * factors).sum(1, keepdim=True), d], 1)
        self.rows = rows if self.rows is None else self.rows + rows

    def sums(self) -> GateSums | None:
        """What it showed; None of a gate that no gradient has reached."""
        return None if self.factors is None or self.rows is None else GateSums(self.factors, self.rows)
