"""Fisher diagonals -> one saliency per gate of a coupled group, comparable across layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import ChannelGroup, Unit

__all__ = ["ESTIMATORS", "saliency"]

ESTIMATORS = ("gate", "weight")
"""Whose Fisher diagonal ranks the channels, see `hqp_lightning.core.fisher`."""


def saliency(
    fisher: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    estimator: str = "gate",
    units: Sequence[Unit] = (),
) -> dict[str, Tensor]:
    """Predicted loss increase when each gate is switched off, up to the factor one half.

    For the gate estimator this is the group's Fisher diagonal itself. For the weight estimator it is the paper's
    ``S(f) = sum of F_w over the filter`` (arXiv 2602.06069), summed over all filters that write the channel.

    Args:
        fisher: mean Fisher values, keyed by group name (gate) or parameter name (weight).
        groups: the coupled groups.
        estimator: ``"gate"`` or ``"weight"``.
        units: modules that may go as a whole; the weight estimator has no value of them.

    Returns:
        Group name to a float32 tensor of shape ``(gates,)``, and a unit's key to one of ``(1,)``, on the CPU.

    Raises:
        ConfigurationError: unknown estimator.
    """
    if estimator not in ESTIMATORS:
        raise ConfigurationError(f"estimator={estimator!r} is not known; choose one of {ESTIMATORS}.")
    if estimator == "gate":
        names = [*(g.name for g in groups), *(u.key for u in units)]
        return {n: fisher[n].float().cpu() for n in names if n in fisher}
    return {g.name: _filter_sums(fisher, g) for g in groups}


def _filter_sums(fisher: Mapping[str, Tensor], group: ChannelGroup) -> Tensor:
    total = torch.zeros(group.gates)
    for f in group.filters:
        if f.parameter not in fisher:
            continue
        values = fisher[f.parameter].float().cpu().movedim(f.dim, 0)
        per_filter = values.reshape(len(values), -1).sum(1)[torch.tensor(f.indices)]
        total = total.index_add(0, torch.tensor(f.channels) % group.gates, per_filter)
    return total
