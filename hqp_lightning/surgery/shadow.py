"""A private copy of a network, to find out what may be cut and what a cut does; the live one is not touched."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import ConfigurationError, SurgeryError
from hqp_lightning.records import ChannelGroup, GroupNote
from hqp_lightning.surgery.copying import copied, floating_tensors, on_cpu
from hqp_lightning.surgery.cost import layer_macs
from hqp_lightning.surgery.cut import Cut
from hqp_lightning.surgery.graph import group_norm
from hqp_lightning.surgery.proof import Proof
from hqp_lightning.surgery.slicing import kept_by
from hqp_lightning.surgery.structure import record
from hqp_lightning.surgery.tracing import LEFT_OUT, Trace, failing, trace
from hqp_lightning.surgery.twin import kept_sides, pruned_twin

__all__ = ["Shadow"]

_log = logging.getLogger(__name__)
_TRACES: weakref.WeakKeyDictionary[nn.Module, dict[Any, Trace]] = weakref.WeakKeyDictionary()
"""One trace for each structure of each living network: a rollback comes back to one that is known."""


class Shadow:
    """A traced copy of a network, in which every group that it offers was cut and compared.

    Args:
        module: the network; it is copied, not changed.
        example: a call of it, or its inputs by place, for one or more samples.
        ignore: module names whose output channels must stay (the head is found without being told).

    Raises:
        ConfigurationError: the module can't be copied or traced, or ``ignore`` names no module.
    """

    def __init__(self, module: nn.Module, example: Call | Sequence[Tensor], ignore: Sequence[str] = ()) -> None:
        with _plain_autograd():
            self._example = on_cpu(example)
            self._module = copied(module)
            names = dict(self._module.named_modules())
            unknown = [n for n in ignore if n not in names]
            if unknown:
                raise ConfigurationError(f"ignore={unknown} names no module of the network; it has {_some(names)}.")
            self._trace = self._traced(module, tuple(ignore))
        self._proved: dict[str, tuple[int, ...]] | None = None

    @property
    def macs(self) -> float:
        """MACs of the network for one sample."""
        return sum(self._trace.macs.values())

    @property
    def params(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self._module.parameters())

    @property
    def notes(self) -> tuple[GroupNote, ...]:
        """The groups that can't be cut, and those whose cuts are approximations, each with the reason."""
        return self._trace.notes

    def groups(self) -> tuple[ChannelGroup, ...]:
        """The coupled groups that may lose channels, in the order in which their roots run; without the head's."""
        return tuple(c.group for c in self._trace.coupled.values())

    def group_norms(self) -> dict[str, Tensor]:
        """Squared L2 norm of each gate's weights over the group's mean, by group name: the usual magnitude criterion.

        It is Torch-Pruning's ``GroupMagnitudeImportance`` as it stands; tied channels count by their mean.
        """
        return {
            name: group_norm(self._module, c.slices).view(c.group.blocks, c.group.gates).mean(0)
            for name, c in self._trace.coupled.items()
        }

    def unprovable(self, removed: Mapping[str, Sequence[int]]) -> dict[str, str]:
        """The groups of a step that can't lose these channels, with the reason; empty if the step is proved.

        Args:
            removed: group name to the channels to remove.

        Raises:
            SurgeryError: the channels are not a group's.
        """
        coupled = self._trace.coupled
        missing = sorted(set(removed) - set(coupled))
        if missing:
            raise SurgeryError(f"no prunable group is named {missing}; the network has {_some(coupled)}.")
        for name, channels in removed.items():
            _check_channels(coupled[name].group, channels)
        asked = {n: tuple(sorted(c)) for n, c in removed.items() if c}
        if asked == self._proved or not asked:
            return {}
        with _plain_autograd():
            proof = Proof(self._module, self._example, coupled, self._trace.training)
            like = self._trace.approximate
            bad = failing([n for n in asked if n not in like], lambda names: proof.masks({n: asked[n] for n in names}))
            bad |= failing([n for n in asked if n in like], lambda names: proof.exchanges({n: asked[n] for n in names}))
            rest = [n for n in asked if n not in bad]
            bad |= failing(rest, lambda names: proof.runs({n: asked[n] for n in names}))
        self._proved = asked if not bad else None
        return bad

    def cut(self, removed: Mapping[str, Sequence[int]]) -> Cut:
        """What survives when these channels go, proved on the copy; the copy stays as it is.

        Args:
            removed: group name to the channels to remove.

        Raises:
            SurgeryError: the pruned network would not run, would compute another function, or would change its output
                shape; or the channels are not a group's.
        """
        bad = self.unprovable(removed)
        if bad:
            reasons = "; ".join(f"{n}: {r}" for n, r in bad.items())
            raise SurgeryError(
                f"pruning { {n: len(c) for n, c in removed.items()} } would break the network: {reasons}"
            )
        sides = kept_sides(self._module, self._trace.coupled, removed)
        kept = kept_by(self._module, sides)
        with _plain_autograd():
            pruned = pruned_twin(self._module, sides)
            macs, _ = layer_macs(pruned, self._example)
        whole = {n: torch.arange(t.numel()).view(t.shape) for n, t in floating_tensors(self._module) if n not in kept}
        params = sum(p.numel() for p in pruned.parameters())
        return Cut({**whole, **kept}, record(pruned), sum(macs.values()), params)

    def _traced(self, module: nn.Module, ignore: tuple[str, ...]) -> Trace:
        structure = record(self._module)
        kinds = tuple(type(m).__qualname__ for m in self._module.modules())
        call = (ignore, self._example.shapes(), kinds)
        key = (call, repr(structure.shapes), repr(structure.attributes))
        known = _TRACES.setdefault(module, {})
        if key not in known:
            before = [n for k, t in known.items() if k[0] == call for n in t.notes]
            known[key] = trace(self._module, self._example, ignore, before)
            _tell([n for n in known[key].notes if n not in before])
        return known[key]


def _tell(notes: Sequence[GroupNote]) -> None:
    """One line for all groups that were left out now, at the console of the process."""
    out = [n for n in notes if n.status == LEFT_OUT]
    if out:
        shown = "; ".join(f"{n.group}: {n.reason}" for n in out[:3])
        more = f"; and {len(out) - 3} more, see the report" if len(out) > 3 else ""
        stay = (
            "1 group of channels stays as it is" if len(out) == 1 else f"{len(out)} groups of channels stay as they are"
        )
        _log.warning("hqp: %s: %s%s", stay, shown, more)


@contextmanager
def _plain_autograd() -> Iterator[None]:
    """Neither inference mode nor autocast, with gradients, whatever is around."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        yield


def _check_channels(group: ChannelGroup, channels: Sequence[int]) -> None:
    chosen = set(channels)
    outside = sorted(c for c in chosen if not 0 <= c < group.channels)
    if outside or len(chosen) == group.channels:
        raise SurgeryError(
            f"group {group.name!r} has channels 0 to {group.channels - 1}, of which one must stay; "
            f"got {f'{outside[:5]}' if outside else 'all of them'}."
        )
    torn = [c for c in chosen if any(k not in chosen for k in range(c % group.gates, group.channels, group.gates))]
    if torn:
        tied = tuple(range(torn[0] % group.gates, group.channels, group.gates))
        raise SurgeryError(f"channels {tied} of group {group.name!r} go together: remove all or none.")
    gates = {c % group.gates for c in chosen}
    whole = next((part for part in group.parts if part <= gates), None)
    if whole is not None:
        raise SurgeryError(
            f"gates {sorted(whole)[:5]} (of {len(whole)}) are all that a layer reads or writes of group "
            f"{group.name!r}; one must stay."
        )


def _some(names: Mapping[str, object]) -> str:
    shown = [n for n in names if n]
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")
