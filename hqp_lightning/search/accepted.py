"""A model that a search holds on to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hqp_lightning.surgery import Snapshot

__all__ = ["Accepted"]


@dataclass(frozen=True)
class Accepted:
    """A validated model: its score, its costs and a copy of its weights. ``index`` is the step, 0 for the dense one."""

    index: int
    score: float
    macs: float
    params: int
    snapshot: Snapshot

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "snapshot": self.snapshot.to_plain()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Accepted:
        """Inverse of `to_plain`."""
        return cls(**{**plain, "snapshot": Snapshot.from_plain(plain["snapshot"])})
