"""Values for what starts as a constant, so that a proof sees it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["wake_"]


@torch.no_grad()
def wake_(network: nn.Module) -> None:
    """Give values to what starts as a constant: behind a scale of zero every cut would look right."""
    generator = torch.Generator().manual_seed(1)

    def draw(t: Tensor, low: float, high: float) -> None:
        t.copy_(torch.empty(t.shape).uniform_(low, high, generator=generator))

    for p in network.parameters():
        if p.is_floating_point() and p.numel() and bool((p == p.flatten()[0]).all()):
            zero = float(p.flatten()[0]) == 0
            if p.numel() > 1 or zero:
                draw(p, *((-0.3, 0.3) if zero and p.numel() > 1 else (0.5, 1.5)))
    for m in network.modules():
        if isinstance(m, _NormBase) and m.running_mean is not None and m.running_var is not None:
            if not m.running_mean.any():
                draw(m.running_mean, -0.3, 0.3)
            if bool((m.running_var == 1).all()):
                draw(m.running_var, 0.5, 1.5)
