"""What HQPPruning knows during a run, and its form in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from hqp_lightning.core.latency import Price
from hqp_lightning.core.search import Search
from hqp_lightning.core.verdict import score_drop
from hqp_lightning.records import GroupNote, LatencyTable, StepRecord
from hqp_lightning.report.schema import decode, encode
from hqp_lightning.search.accepted import Accepted
from hqp_lightning.surgery import Snapshot

__all__ = ["FIT_ENDED", "NO_EPOCHS", "Accepted", "PruningState"]

FIT_ENDED = "fit ended"
NO_EPOCHS = "no epochs are left to heal and judge another step"
_PAUSES = (FIT_ENDED, NO_EPOCHS)


@dataclass
class PruningState:
    """Mutable state of one search.

    Attributes:
        search: step size and whether it goes on.
        baseline: the score that drops are measured from, if the user gave one.
        best: the best score that the dense or an accepted model reached; drops are measured from it otherwise.
        first: what the first judged step was measured from.
        price: milliseconds of a structure, where a latency table ranks the channels.
        left: a ``fit`` has ended, with the last accepted model in place.
        dense_macs: MACs of the dense network for one sample.
        channels: group name to its channels in the dense network.
        dense: the best dense model seen.
        accepted: the last few accepted models, oldest first.
        records: every step with its outcome.
        pending: a step that was made and is not judged yet (its accuracy is None).
        undo: what takes the pending step back.
        healing: the pending step's best score in each validated epoch, these counted from the one that it was made in.
        saliency: the scores that the next proposal uses; None until a validation has measured them.
        dense_saliency: the last scores of the dense network, before the first step.
        rises: by how much the loss rose without each branch when the last step was chosen, nats.
        dense_rises: the same of the dense network.
        rejected: removals that were judged too expensive since the last kept step; none is tried twice.
        outline: what the pending step leaves, see `hqp_lightning.search.outline`.
        rolled_back: that of every step that was judged too expensive.
        barred: units that were rolled back alone, and what the loss was predicted to rise by then, nats.
        notes: the groups that can't be cut, and those whose cuts are approximations.
        rollback_due: the pending step was judged too expensive and goes at the next epoch start.
        missed: what was asked for and not reached when the last fit ended, in a line.
    """

    search: Search
    baseline: float | None = None
    dense_macs: float = 0.0
    channels: dict[str, int] = field(default_factory=dict)
    dense: Accepted | None = None
    accepted: list[Accepted] = field(default_factory=list)
    records: list[StepRecord] = field(default_factory=list)
    pending: StepRecord | None = None
    undo: Snapshot | None = None
    saliency: dict[str, Tensor] | None = None
    dense_saliency: dict[str, Tensor] | None = None
    rejected: list[dict[str, tuple[int, ...]]] = field(default_factory=list)
    rollback_due: bool = False
    notes: list[GroupNote] = field(default_factory=list)
    best: float | None = None
    first: float | None = None
    left: bool = False
    price: Price | None = None
    outline: dict[str, int] = field(default_factory=dict)
    rolled_back: list[dict[str, int]] = field(default_factory=list)
    barred: dict[str, float] = field(default_factory=dict)
    healing: dict[int, float] = field(default_factory=dict)
    rises: dict[str, float] = field(default_factory=dict)
    dense_rises: dict[str, float] = field(default_factory=dict)
    missed: str | None = None

    @property
    def predicted_ms(self) -> float | None:
        """The latency that the table predicts of the last accepted model; None where there is no table."""
        last = self.accepted[-1].index if self.accepted else 0
        found = (r.predicted_ms for r in reversed(self.records) if r.index == last)
        return None if self.price is None else next(found, self.price.dense_ms)

    @property
    def reference(self) -> float | None:
        """The score that drops are measured from; None as long as there is none."""
        if self.baseline is not None:
            return self.baseline
        # Checkpoints of before there was a best score go on with the dense model's.
        return self.best if self.best is not None or self.dense is None else self.dense.score

    def reached(self, score: float, mode: str) -> None:
        """A dense or accepted model has this score."""
        best = self.best if self.best is not None or self.dense is None else self.dense.score
        self.best = score if best is None or score_drop(best, score, mode) < 0 else best

    @property
    def left_out(self) -> set[str]:
        """Names of the groups that lose nothing."""
        return {n.group for n in self.notes if n.status == "left out"}

    def note(self, notes: Iterable[GroupNote]) -> None:
        """Add what is not known yet: one note for each group and status."""
        known = {(n.group, n.status) for n in self.notes}
        self.notes += [n for n in notes if (n.group, n.status) not in known]

    def bar(self, record: StepRecord) -> None:
        """Remember what was rolled back: the network, or the unit if one was all of the step, whatever else goes."""
        if len(record.units_removed) == 1 and not record.channels_removed:
            self.barred[record.units_removed[0]] = record.predicted_loss_increase
        else:
            self.rolled_back.append(self.outline)

    def bars(self, unit: str, saliency: Mapping[str, Tensor]) -> bool:
        """Whether a unit is still predicted to cost more than half of what it was when it was rolled back."""
        value = saliency.get(unit)
        return unit in self.barred and value is not None and 0.5 * float(value.sum()) > 0.5 * self.barred[unit]

    def rank_by(self, saliency: dict[str, Tensor]) -> None:
        """Take over what a validation has measured, if it has."""
        self.saliency = saliency or self.saliency
        if not self.records:
            self.dense_saliency = self.saliency

    def tried(self, rises: dict[str, float]) -> None:
        """What the loss does without each branch of the network that the next step is chosen for."""
        self.rises = rises
        if not self.records:
            self.dense_rises = rises

    def heals(self, epoch: int, score: float, mode: str) -> None:
        """The pending step's score in an epoch, counted from the one that it was made in; each keeps its best."""
        best = self.healing.get(epoch, math.nan)
        if not math.isfinite(best) or score_drop(best, score, mode) < 0:
            self.healing[epoch] = score

    def close(self, outcome: str, reason: str, **measured: Any) -> StepRecord:
        """Move the pending step to the records with its outcome."""
        if self.pending is None:
            raise RuntimeError("there is no step to close")
        record = replace(self.pending, outcome=outcome, reason=reason, healing=tuple(self.healing.values()), **measured)
        self.records.append(record)
        self.pending, self.healing = None, {}
        return record

    def to_plain(self) -> dict[str, Any]:
        """Tensors, dicts, lists, strings and numbers: loads with ``weights_only=True``."""
        return {
            "search": asdict(self.search),
            "baseline": self.baseline,
            "dense_macs": self.dense_macs,
            "channels": dict(self.channels),
            "dense": self.dense and self.dense.to_plain(),
            "accepted": [a.to_plain() for a in self.accepted],
            "records": [asdict(r) for r in self.records],
            "pending": self.pending and asdict(self.pending),
            "undo": self.undo and self.undo.to_plain(),
            "saliency": self.saliency,
            "dense_saliency": self.dense_saliency,
            "rejected": [{n: list(c) for n, c in r.items()} for r in self.rejected],
            "rollback_due": self.rollback_due,
            "notes": [asdict(n) for n in self.notes],
            "best": self.best,
            "first": self.first,
            "left": self.left,
            "price": self.price and encode(self.price.table, LatencyTable, "price"),
            "outline": dict(self.outline),
            "rolled_back": [dict(o) for o in self.rolled_back],
            "barred": dict(self.barred),
            "healing": dict(self.healing),
            "rises": dict(self.rises),
            "dense_rises": dict(self.dense_rises),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> PruningState:
        """Inverse of `to_plain`."""
        search = Search(**plain["search"])
        if "left" not in plain and search.ended in _PAUSES:  # in older files the end of a fit was an end for ever
            plain = {**plain, "left": search.ended == FIT_ENDED}
            search = replace(search, ended=None, paused=search.ended)
        return cls(
            **{
                **plain,
                "search": search,
                "dense": plain["dense"] and Accepted.from_plain(plain["dense"]),
                "accepted": [Accepted.from_plain(a) for a in plain["accepted"]],
                "records": [StepRecord(**r) for r in plain["records"]],
                "pending": plain["pending"] and StepRecord(**plain["pending"]),
                "rejected": [{n: tuple(c) for n, c in r.items()} for r in plain["rejected"]],
                "notes": [GroupNote(**n) for n in plain.get("notes", ())],
                "price": _price(plain.get("price")),
                "undo": plain["undo"] and Snapshot.from_plain(plain["undo"]),
            }
        )


def _price(plain: Mapping[str, Any] | None) -> Price | None:
    if plain is None:
        return None
    return Price(decode(plain, LatencyTable, "price"))
