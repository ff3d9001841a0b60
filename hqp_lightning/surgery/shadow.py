"""A private copy of a network, to find out what may be cut and what a cut does; the live one is not touched."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import ConfigurationError, SurgeryError
from hqp_lightning.records import ChannelGroup, GroupNote, Unit
from hqp_lightning.surgery.asked import check_channels, some_of, tell
from hqp_lightning.surgery.copying import copied, deep_copy, floating_tensors, on_cpu
from hqp_lightning.surgery.cost import layer_macs, layer_widths
from hqp_lightning.surgery.cut import Cut
from hqp_lightning.surgery.folding import Removal, plan, proved, remove_
from hqp_lightning.surgery.halving import failing
from hqp_lightning.surgery.peers import group_norms, isomorphic_taylor
from hqp_lightning.surgery.proof import Proof
from hqp_lightning.surgery.slicing import kept_by, weights_of
from hqp_lightning.surgery.structure import record
from hqp_lightning.surgery.tracing import Trace, trace
from hqp_lightning.surgery.twin import kept_sides, pruned_twin
from hqp_lightning.surgery.units import find

__all__ = ["Shadow"]

_TRACES: weakref.WeakKeyDictionary[nn.Module, dict[Any, Trace]] = weakref.WeakKeyDictionary()
"""One trace for each structure of each living network: a rollback comes back to one that is known."""
_UNITS: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[Removal, ...]]] = weakref.WeakKeyDictionary()


class Shadow:
    """A traced copy of a network, in which every group that it offers was cut and compared.

    Args:
        module: the network; it is copied, not changed.
        example: a call of it, or its inputs by place, for one or more samples.
        ignore: names of modules that stay as they are (the head is found without being told).

    Attributes:
        removals: units that the copy has lost, and ``module`` has still; see `without`.

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
                raise ConfigurationError(f"ignore={unknown} names no module of the network; it has {some_of(names)}.")
            self._owner, self._ignore = module, tuple(ignore)
            self._tried: Proof | None = None
            self._trace = self._traced()
        self.removals: tuple[Removal, ...] = ()
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

    def widths(self, layers: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Input and output channels of those of the layers that the network still has."""
        return layer_widths(self._module, layers)

    def groups(self) -> tuple[ChannelGroup, ...]:
        """The coupled groups that may lose channels, in the order in which their roots run; without the head's."""
        return tuple(c.group for c in self._trace.coupled.values())

    def group_params(self) -> dict[str, int]:
        """Parameters that go with each whole group, by its name, as long as all others stay."""
        return {n: weights_of(self._module, c.slices) for n, c in self._trace.coupled.items()}

    def units(self) -> tuple[Unit, ...]:
        """The modules that may go as a whole, in the order of the network; none that holds or is an ignored one."""
        return tuple(r.unit for r in self._removable())

    def without(self, units: Sequence[str]) -> Shadow:
        """The shadow of the network without these units, whose loss is proved; this one stays as it is.

        Args:
            units: their keys.

        Raises:
            SurgeryError: they are not the network's, or can't go together.
        """
        if not units:
            return self
        chosen = tuple(r for r in self._removable() if r.unit.key in set(units))
        missing = sorted(set(units) - {r.unit.key for r in chosen})
        if missing:
            raise SurgeryError(f"no unit has the key {missing}; the network has {[u.key for u in self.units()]}.")
        with _plain_autograd():
            reason = proved(self._proof(), chosen)
        if reason:
            raise SurgeryError(f"removing {list(units)} would break the network: {reason}")
        less = copy.copy(self)
        less._module = deep_copy(self._module)
        chosen = tuple(r for r in chosen if not any(o.unit.holds(r.unit.name) for o in chosen))
        for r in chosen:
            remove_(less._module, r)
        less._module.requires_grad_(True)
        less.removals, less._proved, less._tried = (*self.removals, *chosen), None, None
        with _plain_autograd():
            less._trace = less._traced(self._trace.notes)
        return less

    def group_norms(self) -> dict[str, Tensor]:
        """Squared L2 norm of each gate's weights over the group's mean, see `hqp_lightning.surgery.peers`."""
        return group_norms(self._module, self._trace.coupled)

    def isomorphic_taylor(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Places by |weight · gradient| among groups of the same layers, see `hqp_lightning.surgery.peers`."""
        return isomorphic_taylor(self._module, self._trace.coupled, gradients)

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
            raise SurgeryError(f"no prunable group is named {missing}; the network has {some_of(coupled)}.")
        for name, channels in removed.items():
            check_channels(coupled[name].group, channels)
        asked = {n: tuple(sorted(c)) for n, c in removed.items() if c}
        if asked == self._proved or not asked:
            return {}
        with _plain_autograd():
            proof = self._proof()
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
        if reasons := "; ".join(f"{n}: {r}" for n, r in bad.items()):
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
        return Cut({**whole, **kept}, record(pruned), sum(macs.values()), params, self.removals)

    def _proof(self) -> Proof:
        if self._tried is None:
            known = self._trace
            self._tried = Proof(self._module, self._example, known.coupled, known.training, known.ends)
        return self._tried

    def _removable(self) -> tuple[Removal, ...]:
        known, key = _UNITS.setdefault(self._owner, {}), self._key()
        if key not in known:
            with _plain_autograd():
                proof = self._proof()
                known[key] = plan(proof, find(proof, self._trace.macs, self._ignore))
        return known[key]

    def _key(self) -> tuple[Any, ...]:
        structure = record(self._module)
        call = self._ignore, self._example.shapes(), tuple(type(m).__qualname__ for m in self._module.modules())
        return call, repr(structure.shapes), repr(structure.attributes)

    def _traced(self, notes: Sequence[GroupNote] = ()) -> Trace:
        known, key = _TRACES.setdefault(self._owner, {}), self._key()
        if key not in known:
            before = [*notes, *(n for k, t in known.items() if k[0] == key[0] for n in t.notes)]
            known[key], self._tried = trace(self._module, self._example, self._ignore, before)
            tell([n for n in known[key].notes if n not in before])
        return known[key]


@contextmanager
def _plain_autograd() -> Iterator[None]:
    """Neither inference mode nor autocast, with gradients, whatever is around."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        yield
