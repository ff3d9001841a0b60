"""What is asked of a network, checked before anything is done; and what its user hears of what can't be."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from hqp_lightning.errors import SurgeryError
from hqp_lightning.records import ChannelGroup, GroupNote
from hqp_lightning.surgery.tracing import LEFT_OUT

__all__ = ["check_channels", "some_of", "tell"]

_log = logging.getLogger(__name__)


def check_channels(group: ChannelGroup, channels: Sequence[int]) -> None:
    """Refuse channels that a group does not have, all of them, and a part of those that go together."""
    chosen = set(channels)
    outside = sorted(c for c in chosen if not 0 <= c < group.channels)
    if outside or len(chosen) == group.channels:
        raise SurgeryError(
            f"group {group.name!r} has channels 0 to {group.channels - 1}, of which one must stay; "
            f"got {f'{outside[:5]}' if outside else 'all of them'}."
        )
    width = group.gates
    gates = Counter(c % width for c in chosen)  # one look at each channel: asked for every group, step and trial
    for gate, count in gates.items():
        if count < len(tied := range(gate, group.channels, width)):
            raise SurgeryError(f"channels {tuple(tied)} of group {group.name!r} go together: remove all or none.")
    whole = next((part for part in group.parts if part <= gates.keys()), None)
    if whole is not None:
        raise SurgeryError(
            f"gates {sorted(whole)[:5]} (of {len(whole)}) are all that a layer reads or writes of group "
            f"{group.name!r}; one must stay."
        )


def some_of(names: Mapping[str, object]) -> str:
    """The first names, for a message."""
    shown = [n for n in names if n]
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")


def tell(notes: Sequence[GroupNote]) -> None:
    """One line for all groups that were left out now, at the console of the process."""
    out = [n for n in notes if n.status == LEFT_OUT]
    if out:
        shown = "; ".join(f"{n.group}: {n.reason}" for n in out[:3])
        more = f"; and {len(out) - 3} more, see the report" if len(out) > 3 else ""
        stay = (
            "1 group of channels stays as it is" if len(out) == 1 else f"{len(out)} groups of channels stay as they are"
        )
        _log.warning("hqp: %s: %s%s", stay, shown, more)
