"""A step in parts: the scores of a network say little of one that has lost half of itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from hqp_lightning.core.branches import as_tried
from hqp_lightning.core.calls import Call
from hqp_lightning.core.selection import joined
from hqp_lightning.loop.network import find_network
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.records import PruningStep, unit_of
from hqp_lightning.search.proposal import untried
from hqp_lightning.search.rescoring import rescored, tried
from hqp_lightning.search.saving import ends_in_macs, wanted
from hqp_lightning.search.state import PruningState
from hqp_lightning.surgery import Shadow

__all__ = ["Substep", "outside", "substeps"]

SHARE = 0.25
"""At most this fraction of the MACs that a network has, or of its time, goes by one set of scores."""
_MORE = 2
"""Parts for what is missing: narrower layers share what their cuts save, so that a step falls short of the sum."""


@dataclass(frozen=True)
class Substep:
    """A part of a step.

    Attributes:
        shadow: of the network before it.
        part: what goes now.
        whole: what has gone with it since the step began, in the numbering from before the step.
        losses: what each group and unit of the part is predicted to cost, nats, by the scores that chose it.
    """

    shadow: Shadow
    part: PruningStep
    whole: dict[str, tuple[int, ...]]
    losses: dict[str, float]


def substeps(
    trainer: Trainer, pl_module: LightningModule, state: PruningState, options: PruningOptions, example: Call
) -> Iterator[Substep]:
    """The parts of the next step, each proposed when the one before was made, by scores of what that left.

    The first one goes by what the last validation has measured. There is none where nothing may be removed; the same on
    all ranks.

    Raises:
        SurgeryError: the network could not be scored anew.
    """
    _, network = find_network(pl_module, options.module)
    shadow, whole = Shadow(network, example, options.ignore), dict[str, tuple[int, ...]]()
    scores: Mapping[str, Tensor] = state.saliency or {}
    left = wanted(shadow, state, options)
    parts = left.parts(shadow, state, SHARE)
    last = -_MORE if ends_in_macs(shadow, state, options) else 0
    while True:
        state.note(shadow.notes)
        rises = tried(trainer, pl_module, network, shadow, options, scores)
        if not whole:
            state.tried(rises)
        scores = as_tried(scores, rises)
        proposed = untried(shadow, left.part(max(parts, 1)), state, options, scores, whole)
        part = trainer.strategy.broadcast(proposed)
        if not part.parts:
            return
        whole = joined({n: c for n, c in whole.items() if n in outside(whole, part.units)}, part.parts)
        yield Substep(shadow, part, whole, {n: _cost(scores[n], channels) for n, channels in part.parts.items()})
        parts -= 1
        if parts <= last:
            return
        start, shadow = shadow, Shadow(network, example, options.ignore)
        left = left.after(start, shadow, state)
        if left.nothing:
            return
        scores = rescored(trainer, pl_module, network, shadow, options)


def _cost(scores: Tensor, channels: Sequence[int]) -> float:
    """Half the scores of the gates of these channels; of a unit, which has none, its own."""
    gates = sorted({c % len(scores) for c in channels})
    return 0.5 * float((scores[gates] if gates else scores).double().sum())


def outside(parts: Iterable[str], units: Iterable[str]) -> tuple[str, ...]:
    """Groups and keys of units that do not lie inside one of ``units``, with which they would go anyway.

    Examples:
        >>> outside(["gate:block.gate", "gate:other", "block.conv"], ["branch:block"])
        ('gate:other',)
    """
    holders = tuple(f"{unit[1]}." for key in units if (unit := unit_of(key)))
    return tuple(p for p in parts if not (unit[1] if (unit := unit_of(p)) else p).startswith(holders))
