"""Means and variances of channels, and what a change of them means for the statistics of a BatchNorm layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "carried", "merge", "moments"]

_FLAT = 1e-6
_PIECE = 2048
"""Values of a channel that are summed up at once."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and (biased) variance of every channel, shape ``(C,)``, over ``count`` values each."""

    count: float
    mean: Tensor
    variance: Tensor

    @property
    def finite(self) -> bool:
        """Whether all of them are numbers."""
        return bool((self.mean.isfinite() & self.variance.isfinite()).all())

    def of(self, channels: Tensor | None) -> Moments:
        """Those of some channels; None for all."""
        if channels is None:
            return self
        channels = channels.to(self.mean.device)
        return Moments(self.count, self.mean[channels], self.variance[channels])


def moments(x: Tensor) -> Moments:
    """Of an activation of shape ``(N, C, ...)``, in float32.

    Examples:
        >>> m = moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> m.count, m.mean.tolist(), m.variance.tolist()
        (2, [2.0, 5.0], [1.0, 0.0])
    """
    values = x.detach().float()
    if values.device.type != "cpu":
        values = values.transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(values, 1, correction=0)
        return Moments(values.shape[1], mean, variance)
    # BatchNorm's own sums, for any memory format six to twenty times as fast as var_mean on a CPU; in pieces, as each
    # is summed up one by one in float32.
    positions = max(1, values[0, 0].numel())
    pieces = values.split(max(1, _PIECE // positions))
    found = [torch.batch_norm_update_stats(p, None, None, 0.0) for p in pieces]
    means, variances = (torch.stack(side) for side in zip(*found, strict=True))
    share = torch.tensor([len(p) / len(values) for p in pieces])[:, None]
    mean = (share * means).sum(0)
    return Moments(len(values) * positions, mean, (share * (variances + (means - mean).square())).sum(0))


def merge(parts: Sequence[Moments]) -> Moments:
    """Of all the values together, on the CPU in float64: the variance within the parts, and that between their means.

    Examples:
        >>> both = merge([moments(torch.tensor([[1.0], [3.0]])), moments(torch.tensor([[8.0]]))])
        >>> both.mean.tolist(), round(both.variance.item(), 3)  # of 1, 3 and 8
        ([4.0], 8.667)
    """
    count = sum(p.count for p in parts)
    share = torch.tensor([p.count / count for p in parts], dtype=torch.float64)[:, None]
    means = torch.stack([p.mean.cpu().double() for p in parts])
    variances = torch.stack([p.variance.cpu().double() for p in parts])
    mean = (share * means).sum(0)
    return Moments(count, mean, (share * (variances + (means - mean).square())).sum(0))


def carried(mean: Tensor, variance: Tensor, eps: float, before: Moments, after: Moments) -> tuple[Tensor, Tensor]:
    """Running statistics of a normalisation whose input went from ``before`` to ``after``: its output stays alike.

    With m, v the input's moments before and m', v' after, and mu, var the statistics,

        var' = var v' / v,    mu' = mu + (m' - m) + (m - mu) (1 - sqrt((var' + eps) / (var + eps))),

    so that mean and variance of (x - mu) / sqrt(var + eps) are kept. Statistics that were the data's stay so (mu = m,
    var = v gives mu' = m', var' = v'); where nothing changed nothing changes, to the last bit. A channel that did not
    vary before (v below 1e-6 of var + eps) keeps its variance.

    Args:
        mean: mu, shape ``(C,)``.
        variance: var, shape ``(C,)``.
        eps: of the normalisation.
        before: m and v.
        after: m' and v'.

    Returns:
        mu' and var', in the type and on the device of the moments.
    """
    m, v = before.mean, before.variance
    mean, variance = mean.to(m), variance.to(m)
    varied = v > _FLAT * (variance + eps)
    scaled = variance * torch.where(varied, after.variance.to(v) / v.where(varied, torch.ones_like(v)), 1.0)
    stretch = ((scaled + eps) / (variance + eps)).sqrt()
    return mean + (after.mean.to(m) - m) + (m - mean) * (1 - stretch), scaled
