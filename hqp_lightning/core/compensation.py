"""Let the inputs that stay take over what the removed ones did: a ridge regression on what a layer reads.

With *x* what the layer goes on reading, *y* = *W*ᵣ *x*ᵣ what the inputs that go contributed to its outputs, and *G* and
*C* the covariances of *x* and of *y* with *x*, the weights of the inputs that stay become

    W' = Wₚ + C (G + λ d I)⁻¹,        d = mean of diag G

and the bias takes *E*[*y*] less what the new weights make of *E*[*x*]. It is the same as regressing the whole output,
W' = (W G[:,P] + λ d Wₚ)(G[P,P] + λ d I)⁻¹ with *G* over all inputs: pulled towards the old weights, not towards zero,
so that λ → ∞ is the plain cut. (GRAIL, arXiv 2602.23795, is this regression with one *G* for all offsets of a kernel
and without that pull; the idea is that of channel pruning by reconstruction, He et al., 2017, arXiv 1707.06168.)

Blocks are those of a grouped convolution, each of which reads inputs of its own; other layers have one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hqp_lightning.core import bands

__all__ = ["STRENGTHS", "Held", "Moments", "Takeover", "best", "error", "pool_", "ridge", "update_"]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""The grid of λ; `best` has the plain cut beside them."""
_UNSEEN = 1e-1
"""λ where nothing was held back to choose it by."""


@dataclass
class Moments:
    """Means and centred second moments of *x* and *y* over ``count`` rows; float32 at least.

    Attributes:
        count: number of rows.
        x: mean of the inputs that stay, ``(blocks, inputs)``.
        y: mean of what the removed ones contributed, ``(blocks, outputs)``.
        xx: Σ (x - mean)(x - mean)ᵀ, ``(blocks, inputs, inputs)``, in `hqp_lightning.core.bands`.
        yx: Σ (y - mean)(x - mean)ᵀ, ``(blocks, outputs, inputs)``.
    """

    count: float
    x: Tensor
    y: Tensor
    xx: list[Tensor]
    yx: Tensor

    @classmethod
    def zeros(cls, blocks: int, inputs: int, outputs: int, like: Tensor | None = None) -> Moments:
        """Of no rows; of the type and on the device of ``like``."""
        like = torch.empty(0) if like is None else like
        x, y, yx = (like.new_zeros(blocks, *shape) for shape in ((inputs,), (outputs,), (outputs, inputs)))
        return cls(0.0, x, y, bands.zeros(blocks, inputs, like), yx)

    @staticmethod
    def numbers(blocks: int, inputs: int, outputs: int) -> int:
        """How many numbers such moments are."""
        return blocks * (bands.numbers(inputs) + (inputs + 1) * outputs + inputs)


@dataclass
class Held:
    """Rows that made no moments, to choose λ by: ``x`` and ``y`` as for `update_`, and a ``weight`` of 1 or 0 each."""

    x: Tensor
    y: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Takeover:
    """What a layer's weights and bias gain.

    Attributes:
        weight: ``(blocks, outputs, inputs)``.
        shift: ``(blocks, outputs)``; zero if nothing behind the layer can take a mean.
        strength: the λ; infinite for the plain cut.
    """

    weight: Tensor
    shift: Tensor
    strength: float


def update_(moments: Moments, x: Tensor, y: Tensor) -> None:
    """Add rows, in place: squares of inputs are the largest thing here, and there is one copy of them.

    Means are moved along (Chan et al., 1983), so that nothing large is ever subtracted from something large.

    Args:
        moments: of the rows so far.
        x: ``(blocks, rows, inputs)``.
        y: ``(blocks, rows, outputs)``.
    """
    rows = x.shape[1]
    if rows == 0:
        return
    mean_x, mean_y = x.mean(1), y.mean(1)
    total = moments.count + rows
    dx, dy = mean_x - moments.x, mean_y - moments.y
    apart = (moments.count * rows / total) ** 0.5  # one row more: the moments are read and written once
    x = torch.cat([x - mean_x[:, None], apart * dx[:, None]], 1)
    y = torch.cat([y - mean_y[:, None], apart * dy[:, None]], 1)
    bands.add_(moments.xx, x)
    moments.yx.baddbmm_(y.mT, x)
    moments.x += dx * (rows / total)
    moments.y += dy * (rows / total)
    moments.count = total


def pool_(moments: Moments, add: Callable[[Tensor], Tensor]) -> None:
    """Make the moments of this process's rows those of all processes' rows together, in place.

    Args:
        moments: of this process.
        add: sums a tensor over the processes; for one alone it returns what it is given.
    """
    count = float(add(torch.tensor(moments.count, dtype=torch.float64)))
    share = moments.count / max(count, 1.0)
    mean_x, mean_y = add(moments.x * share), add(moments.y * share)
    dx, dy = moments.x - mean_x, moments.y - mean_y
    bands.add_(moments.xx, dx[:, None], moments.count)
    moments.yx.baddbmm_(dy[:, :, None], dx[:, None], alpha=moments.count)
    moments.count, moments.x, moments.y = count, mean_x, mean_y
    moments.xx, moments.yx = [add(band) for band in moments.xx], add(moments.yx)


def ridge(moments: Moments, strength: float, centred: bool = True) -> Takeover | None:
    """The regression of *y* on *x* with λ = ``strength``; None if it has no finite solution.

    Args:
        moments: of what the layer read.
        strength: λ, relative to the mean variance of the inputs (of those that vary at all).
        centred: whether a mean can go into a bias. If not, moments about zero take the place of covariances.

    Examples:
        >>> moments, x = Moments.zeros(1, 1, 1), torch.tensor([[[1.0], [2.0], [4.0]]])
        >>> update_(moments, x, 3 * x + 5)  # the removed input was three times the one that stays, and five
        >>> gained = ridge(moments, 0.0)
        >>> round(gained.weight.item(), 3), round(gained.shift.item(), 3)
        (3.0, 5.0)
    """
    xx, yx = moments.xx, moments.yx
    if not centred:
        xx = [band.clone() for band in xx]
        bands.add_(xx, moments.x[:, None], moments.count)
        yx = torch.baddbmm(yx, moments.y[:, :, None], moments.x[:, None], alpha=moments.count)
    variance = bands.diagonal(xx)
    varying = (variance > 0).any(0)  # not dead channels, nor offsets that see nothing but padding: they get zero
    ridged = variance + strength * variance[:, varying].mean(1, keepdim=True)
    factor = bands.factor(xx, ridged.where(varying, torch.ones_like(ridged)))
    if factor is None:
        return None
    weight = bands.solve(factor, yx.mT).mT
    if not bool(weight.isfinite().all()):
        return None
    return Takeover(weight, _shift(moments, weight, centred), strength)


def error(takeover: Takeover, held: Held) -> float:
    """Σ (y - what was taken over)² over the rows held back."""
    left = held.y - torch.baddbmm(takeover.shift[:, None], held.x, takeover.weight.mT)
    return float((left.square().sum(2) * held.weight).sum())


def best(moments: Moments, held: Held, centred: bool = True, strengths: Sequence[float] = STRENGTHS) -> Takeover:
    """The regression whose λ does best on rows that did not make it; the plain cut where none does better than that.

    λ is tried from the largest of ``strengths`` on, until a smaller one does worse: the widest layers, whose rows are
    few for their inputs and whose factors are the dearest, stop first.
    """
    plain = torch.zeros_like(moments.yx)
    shift = _shift(moments, plain, centred)
    nothing = Takeover(plain, shift if bool(shift.isfinite().all()) else torch.zeros_like(shift), float("inf"))
    if not bool(held.weight.any()):
        return ridge(moments, _UNSEEN, centred) or nothing
    found, least, last = nothing, error(nothing, held), float("inf")
    for strength in sorted(strengths, reverse=True):
        tried = ridge(moments, strength, centred)
        value = float("inf") if tried is None else error(tried, held)
        if tried is None or value > last:
            break
        last = value
        if value < least:
            found, least = tried, value
    return found


def _shift(moments: Moments, weight: Tensor, centred: bool) -> Tensor:
    if not centred:
        return torch.zeros_like(moments.y)
    return torch.baddbmm(moments.y[:, :, None], weight, moments.x[:, :, None], alpha=-1).squeeze(2)
