"""Re-estimate BatchNorm statistics after a prune."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hqp_lightning.core.calls import Call, as_call

__all__ = ["recalibrate_batchnorm_"]


def recalibrate_batchnorm_(module: nn.Module, batches: Iterable[Call | tuple[Any, ...]]) -> int:
    """Replace running means and variances by the plain average over some batches, in place.

    Removing channels shifts what the layers behind them see; the old statistics then cost accuracy that a few
    forward passes give back. Only BatchNorm runs in training mode, so dropout and the like do not interfere.

    Args:
        module: the network.
        batches: its calls, batch by batch; a tuple is inputs by place.

    Returns:
        The number of batches used; with none, nothing changes.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    modes = {m: m.training for m in module.modules()}
    momenta = {m: m.momentum for m in norms}
    used = 0
    try:
        module.eval()
        for call in batches if norms else ():
            if used == 0:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # a cumulative average
                    norm.train()
            with torch.no_grad():
                as_call(call).on(module)
            used += 1
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for m, training in modes.items():
            m.training = training
    return used
