"""Units: modules of a network that go as a whole, next to channels."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BRANCH", "GATE", "UNIT_KINDS", "Unit", "unit_of"]

GATE, BRANCH = "gate", "branch"
UNIT_KINDS = {"gates": GATE, "branches": BRANCH}
"""What ``units=`` calls them, and their kind."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A module that a step may remove as a whole.

    Attributes:
        name: qualified name in the network.
        kind: ``"gate"``: its output is its input times one factor for each channel and sample (squeeze-excite); it is
            replaced by the factors' mean. ``"branch"``: its output is its input plus a correction (a residual block);
            it is replaced by the identity.
        macs: MACs that go with it, for one sample.

    Examples:
        >>> Unit("layer1.0", "branch", 2e6).key
        'branch:layer1.0'
    """

    name: str
    kind: str
    macs: float

    @property
    def key(self) -> str:
        """Under which its Fisher value and a step's record have it; no group of channels has such a name."""
        return f"{self.kind}:{self.name}"

    def holds(self, name: str) -> bool:
        """Whether a module of that name lies inside."""
        return name.startswith(f"{self.name}.")


def unit_of(key: str) -> tuple[str, str] | None:
    """Kind and name of the unit that a key is of; None for a group of channels.

    Examples:
        >>> unit_of("gate:features.1.block.1"), unit_of("features.0.0")
        (('gate', 'features.1.block.1'), None)
    """
    kind, colon, name = key.partition(":")
    return (kind, name) if colon and kind in UNIT_KINDS.values() else None
