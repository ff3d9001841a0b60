"""Fisher scores of a network on batches of the run: of what, and the sums of one batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from hqp_lightning.core import fisher
from hqp_lightning.core.calls import Call
from hqp_lightning.core.taps import Loss
from hqp_lightning.loop.options import CHANNELS
from hqp_lightning.records import GATE, UNIT_KINDS, ChannelGroup, Unit
from hqp_lightning.surgery import Shadow
from hqp_lightning.surgery.means import Means, watching

__all__ = ["Scored", "look"]


@dataclass(frozen=True)
class Scored:
    """What has a score in a network as it stands.

    Attributes:
        groups: its coupled groups.
        units: its units that may go.
        means: of each gate among them, by its name, what it multiplies with on average, ``(C,)``.
    """

    groups: tuple[ChannelGroup, ...] = ()
    units: tuple[Unit, ...] = ()
    means: Mapping[str, Tensor] = field(default_factory=dict)

    def fisher(self, network: nn.Module, estimator: str, loss: Loss) -> fisher.FisherState:
        """Sums of one batch; ``loss`` as for `hqp_lightning.core.fisher.gate_fisher`."""
        if estimator == "gate":
            return fisher.gate_fisher(network, self.groups, loss, self.units, self.means)
        layers = dict.fromkeys(f.parameter.rpartition(".")[0] for g in self.groups for f in g.filters)
        return fisher.weight_fisher(network, list(layers), loss)


def look(shadow: Shadow, network: nn.Module, call: Call, units: Collection[str]) -> tuple[Scored, Means]:
    """What has a score, yet without means, and the means of the gates among it in ``call``.

    Args:
        shadow: of ``network``.
        network: as it stands.
        call: the first of the batches.
        units: what may go, as `hqp_lightning.callbacks.HQPPruning` has it.
    """
    wanted = {UNIT_KINDS[u] for u in units if u != CHANNELS}
    found = tuple(u for u in shadow.units() if u.kind in wanted) if wanted else ()
    gates = [u.name for u in found if u.kind == GATE]
    with watching(network, gates) as means:
        if gates:
            call.on(network)
    return Scored(shadow.groups(), found), means
