"""Fisher scores of a network on batches of the run: of what, and the sums of one batch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from hqp_lightning.core import fisher
from hqp_lightning.core.gradients import gradient_sums
from hqp_lightning.core.taps import Loss
from hqp_lightning.loop.options import CHANNELS, ISOMORPHIC
from hqp_lightning.records import UNIT_KINDS, ChannelGroup, Unit
from hqp_lightning.surgery import Shadow

__all__ = ["Scored", "look"]


@dataclass(frozen=True)
class Scored:
    """What has a score in a network as it stands.

    Attributes:
        groups: its coupled groups.
        units: its units that may go.
    """

    groups: tuple[ChannelGroup, ...] = ()
    units: tuple[Unit, ...] = ()

    def fisher(self, network: nn.Module, estimator: str, loss: Loss) -> fisher.FisherState:
        """Sums of one batch; ``loss`` as for `hqp_lightning.core.fisher.gate_fisher`."""
        if estimator == ISOMORPHIC:
            return gradient_sums(network, loss)
        if estimator == "gate":
            return fisher.gate_fisher(network, self.groups, loss, self.units)
        layers = dict.fromkeys(f.parameter.rpartition(".")[0] for g in self.groups for f in g.filters)
        return fisher.weight_fisher(network, list(layers), loss)


def look(shadow: Shadow, units: Collection[str]) -> Scored:
    """What has a score in a network; ``units`` may go, as `hqp_lightning.callbacks.HQPPruning` has it."""
    wanted = {UNIT_KINDS[u] for u in units if u != CHANNELS}
    return Scored(shadow.groups(), tuple(u for u in shadow.units() if u.kind in wanted) if wanted else ())
