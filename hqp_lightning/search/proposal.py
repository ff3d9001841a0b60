"""The next step of a search: proposed, not tried before, and proved on a copy."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from hqp_lightning.core.selection import Caps, joined
from hqp_lightning.errors import SurgeryError
from hqp_lightning.loop.options import CHANNELS, PruningOptions
from hqp_lightning.records import UNIT_KINDS, GroupNote, PruningStep, Unit, unit_of
from hqp_lightning.search.outline import covers, gone, outline_of
from hqp_lightning.search.saving import OVER, Wanted, proposed
from hqp_lightning.search.state import PruningState
from hqp_lightning.surgery import Shadow

__all__ = ["untried"]

_log = logging.getLogger(__name__)


def untried(
    shadow: Shadow,
    wanted: Wanted,
    state: PruningState,
    options: PruningOptions,
    saliency: Mapping[str, Tensor],
    done: Mapping[str, Sequence[int]],
) -> PruningStep:
    """The best step that is proved, and was not rejected already: whole tiles can make a halved step the last one.

    A group or unit that can't go is left out for good, and the step made of the others. A unit that was rolled back
    comes again once it is predicted to cost half of what it was. A halved step asks for less: a unit that is larger
    goes only if nothing else of that size is predicted to cost less. What would lead to a network that was rolled back,
    or to a narrower one, is made half as large; where that leads there, too, one of its groups or units stays.

    Args:
        shadow: of the network as it stands.
        wanted: what to save.
        state: of the search.
        options: of the search.
        saliency: of the network as it stands.
        done: what the step that this belongs to has removed already.
    """
    caps = Caps(options.round_to, options.max_channel_ratio, state.channels)
    groups = {g.name: g for g in shadow.groups() if g.name not in state.left_out and CHANNELS in options.units}
    out = state.left_out | {u for u in state.barred if state.bars(u, saliency)}
    units = {u.key: u for u in offered(shadow, options) if u.key not in out}

    asked, before = wanted, {*gone(state.records), *(p for p in done if unit_of(p))}

    def best(units: dict[str, Unit]) -> PruningStep:
        return proposed(shadow, list(groups.values()), list(units.values()), wanted, caps, state, options, saliency)

    while True:
        step = best(units)
        if not step.parts:
            return step
        if state.search.step < options.step and wanted.ms is None:
            smaller = {k: u for k, u in units.items() if k not in step.units or u.macs <= wanted.macs}
            instead = best(smaller) if len(smaller) < len(units) else step
            cheaper = instead.predicted_loss_increase < step.predicted_loss_increase
            if instead.macs_saved >= wanted.macs and cheaper:
                units = smaller
                continue
        if joined(done, step.parts) in state.rejected:
            last = list(step.parts)[-1]
            del (units if last in units else groups)[last]
            continue
        try:
            less = shadow.without(step.units)
        except SurgeryError as error:
            _leave_out(state, [GroupNote(u, 0, "left out", str(error)) for u in step.units])
            units = {k: u for k, u in units.items() if k not in step.units}
            continue
        # Fewer groups may be left of a network without some units, as those inside of them go along.
        left = {g.name: g.channels for g in less.groups()}
        step = replace(step, removed={n: c for n, c in step.removed.items() if left.get(n) == groups[n].channels})
        outline = outline_of(less, step.removed, {*before, *step.units})
        if step.parts and any(covers(old, outline) for old in state.rolled_back):
            if wanted is asked and state.search.step / 2 >= options.min_step:
                wanted = wanted.half()
            else:
                wanted, last = asked, list(step.parts)[-1]
                del (units if last in units else groups)[last]
            continue
        failed = less.unprovable(step.removed)
        if not failed:
            _tell_size(step, asked)
            return step
        _leave_out(state, [GroupNote(n, groups.pop(n).channels, "left out", why) for n, why in failed.items()])


def offered(shadow: Shadow, options: PruningOptions) -> tuple[Unit, ...]:
    """The units that the options let go."""
    kinds = {UNIT_KINDS[u] for u in options.units if u != CHANNELS}
    return tuple(u for u in shadow.units() if u.kind in kinds) if kinds else ()


def _tell_size(step: PruningStep, asked: Wanted) -> None:
    if asked.ms is not None and step.ms_saved > OVER * asked.ms:
        said = "hqp: %.3g ms were asked for, the step saves %.3g: nothing smaller is predicted to cost less"
        _log.warning(said, asked.ms, step.ms_saved)


def _leave_out(state: PruningState, notes: list[GroupNote]) -> None:
    state.note(notes)
    _log.warning("hqp: left out of this and all further steps: %s", "; ".join(f"{n.group}: {n.reason}" for n in notes))
