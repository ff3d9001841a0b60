"""What a step leaves of a network, in numbers that hold from the first step to the last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hqp_lightning.records import StepRecord, unit_of
from hqp_lightning.surgery import Shadow

__all__ = ["covers", "gone", "outline_of"]


def outline_of(shadow: Shadow, removed: Mapping[str, Sequence[int]], units: Iterable[str]) -> dict[str, int]:
    """Channels that are left of each group, by its name; and zero for each unit that went, by its key.

    Args:
        shadow: without the units of the step.
        removed: group name to the channels that go.
        units: keys of all units that have gone so far.
    """
    return {g.name: g.channels - len(removed.get(g.name, ())) for g in shadow.groups()} | dict.fromkeys(units, 0)


def covers(old: Mapping[str, int], new: Mapping[str, int]) -> bool:
    """Whether one outline holds nothing that the other has lost: the same network, or a narrower one.

    Examples:
        >>> old = {"a": 16, "b": 24, "gate:g": 0}
        >>> covers(old, {"a": 16, "b": 16, "gate:g": 0}), covers(old, {"a": 8, "b": 32, "gate:g": 0})
        (True, False)
        >>> covers(old, {"a": 8, "b": 24}), covers({"c.a": 8, "gate:c.g": 0, "b": 8}, {"b": 8, "branch:c": 0})
        (False, True)
    """
    holders = tuple(f"{unit[1]}." for n in new if (unit := unit_of(n)))
    lost = {n for n in old if (unit := unit_of(n)) and n not in new and not unit[1].startswith(holders)}
    return not lost and all(n in old and width <= old[n] for n, width in new.items() if unit_of(n) is None)


def gone(records: Iterable[StepRecord]) -> set[str]:
    """Keys of the units that kept steps have taken."""
    return {u for r in records if r.outcome == "kept" for u in r.units_removed}
