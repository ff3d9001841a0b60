"""Which channels of a group can only go together."""

from __future__ import annotations

__all__ = ["Ties"]


class Ties:
    """Sets of channels that grow together (a disjoint-set forest).

    >>> ties = Ties(6)
    >>> for channel in range(3):
    ...     ties.join(channel, channel + 3)
    >>> ties.blocks()
    2
    """

    def __init__(self, channels: int) -> None:
        self._above = list(range(channels))

    def join(self, a: int, b: int) -> None:
        """``a`` and ``b`` go together."""
        self._above[self._first(a)] = self._first(b)

    def blocks(self) -> int | None:
        """The number B of equal blocks where exactly ``k, k + channels/B, ...`` go together; None for other sets."""
        sets: dict[int, list[int]] = {}
        for channel in range(len(self._above)):
            sets.setdefault(self._first(channel), []).append(channel)
        gates = len(sets)
        if all(s == list(range(s[0], len(self._above), gates)) for s in sets.values()):
            return len(self._above) // gates
        return None

    def _first(self, channel: int) -> int:
        while self._above[channel] != channel:
            self._above[channel] = self._above[self._above[channel]]
            channel = self._above[channel]
        return channel
