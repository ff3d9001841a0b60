"""The next step of a search: proposed, not tried before, and proved on a copy."""

from __future__ import annotations

import logging

from hqp_lightning.core.selection import Caps, propose
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.records import GroupNote, PruningStep
from hqp_lightning.search.state import PruningState
from hqp_lightning.surgery import Shadow

__all__ = ["untried"]

_log = logging.getLogger(__name__)


def untried(shadow: Shadow, wanted: float, state: PruningState, options: PruningOptions) -> PruningStep:
    """The best step that is proved, and was not rejected already: whole tiles can make a halved step the last one.

    A group that can't lose its channels is left out for good, and the step made of the others.
    """
    caps = Caps(options.round_to, options.max_channel_ratio, state.channels)
    groups = {g.name: g for g in shadow.groups() if g.name not in state.left_out}
    while True:
        step = propose(list(groups.values()), state.saliency or {}, wanted, caps, options.cost)
        if not step.channels:
            return step
        if dict(step.removed) in state.rejected:
            del groups[list(step.removed)[-1]]
            continue
        failed = shadow.unprovable(step.removed)
        if not failed:
            return step
        notes = [GroupNote(n, groups.pop(n).channels, "left out", reason) for n, reason in failed.items()]
        state.note(notes)
        _log.warning(
            "hqp: left out of this and all further steps: %s", "; ".join(f"{n.group}: {n.reason}" for n in notes)
        )
