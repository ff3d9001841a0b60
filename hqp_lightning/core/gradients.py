"""Gradients of the loss for all weights: what Taylor criteria of other libraries look at."""

from __future__ import annotations

import torch
from torch import nn

from hqp_lightning.core.fisher import FisherState, first_finite
from hqp_lightning.core.recomputing import without_reentrance
from hqp_lightning.core.taps import Loss

__all__ = ["gradient_sums"]


def gradient_sums(module: nn.Module, loss: Loss) -> FisherState:
    """Σₙ ∂Lₙ/∂w of one batch, by the parameter's name; of a mean loss its gradient, counted as one sample.

    ``.grad`` is left alone, and frozen parameters have a gradient, too.

    Args:
        module: the network, in eval mode.
        loss: runs it on one batch and returns losses of shape ``(N,)``, or their mean.

    Examples:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> state = gradient_sums(layer, lambda: layer(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum(1))
        >>> state.sums["weight"], state.samples
        (tensor([[4., 6.]]), 2)
    """
    return first_finite(lambda loss_scale: _gradient_sums(module, loss, loss_scale))


def _gradient_sums(module: nn.Module, loss: Loss, loss_scale: float) -> FisherState:
    parameters = {n: p for n, p in module.named_parameters() if p.is_floating_point()}
    frozen = [p for p in parameters.values() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        with without_reentrance():
            value = loss()
            wide = value.to(torch.promote_types(value.dtype, torch.float32)).sum() * loss_scale
            found = torch.autograd.grad(wide, list(parameters.values()), allow_unused=True)
    finally:
        for p in frozen:
            p.requires_grad_(False)
    sums = {n: g / loss_scale for n, g in zip(parameters, found, strict=True) if g is not None}
    return FisherState(sums, len(value) if value.dim() else 1)
