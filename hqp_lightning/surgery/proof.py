"""Proof of a cut: the pruned network equals the whole one with the same channels zeroed at their readers.

In eval mode and float64, on the example and on a random input. What normalises over channels (LayerNorm, GRN, weight
standardisation, a softmax or a mean over channels) makes that an approximation by nature. Then it is proved that the
group's channels are what the graph says in another way: to exchange them with each other, wherever they are written,
carried and read, leaves the network's function as it is, and that of the pruned network. A shuffle, a flip, a shifted
pad or a convolution over the channel vector fails both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hqp_lightning.core.calls import Call
from hqp_lightning.surgery.copying import deep_copy, training_shapes
from hqp_lightning.surgery.graph import Coupled
from hqp_lightning.surgery.severed import outputs_of
from hqp_lightning.surgery.slicing import IN, indices
from hqp_lightning.surgery.twin import Removed, exchanged_sides, kept_sides, pruned_twin
from hqp_lightning.surgery.waking import wake_

__all__ = ["Proof"]

_EXACT, _SINGLE = 1e-9, 1e-4
"""Relative differences that rounding makes in float64, and in a network that computes in float32 anyway."""


class Proof:
    """Tries cuts on copies of a network.

    Attributes:
        network: the copy that is whole, in float64 where it computes in that, with values for what starts as zero.
        calls: of it: the example, and a random one.
        tolerance: relative differences that rounding makes there.

    Args:
        network: a float32 copy on the CPU in eval mode; it is not changed.
        call: an example of two samples.
        coupled: the groups by name.
        training: output shapes in training mode, or None if it does not run there.
        ends: names of layers whose outputs must stay what they are, too, though the network does not return them.
    """

    def __init__(
        self,
        network: nn.Module,
        call: Call,
        coupled: Mapping[str, Coupled],
        training: tuple[Any, ...] | None,
        ends: Sequence[str] = (),
    ) -> None:
        self.coupled, self._training, self._ends = coupled, training, ends
        generator = torch.Generator().manual_seed(0)
        self.calls = [call, call.map(lambda x: torch.randn(x.shape, generator=generator) if _floats(x) else x)]
        self.network, self.tolerance = deep_copy(network), _EXACT
        wake_(self.network)
        try:
            self.network.double()
            self.calls = [c.map(lambda x: x.double() if _floats(x) else x) for c in self.calls]
            self._expected = self._outputs(self.network)
            single = any(o.dtype != torch.float64 for out in self._expected for o in out)
        except Exception:  # a forward that asks for float32
            self.network.float()
            self.calls = [c.map(lambda x: x.float() if _floats(x) else x) for c in self.calls]
            self._expected, single = self._outputs(self.network), True
        if single:
            self.tolerance = _SINGLE
        self._last: tuple[Any, nn.Module, list[list[Tensor]]] | None = None

    def masks(self, removed: Removed) -> str:
        """Why the network without these channels is not the one with them zeroed at their readers; empty if it is."""
        try:
            return self._compare(self._pruned(removed)[1], self._masked(removed))
        except Exception as error:
            return _in_words(error)

    def exchanges(self, removed: Removed) -> str:
        """Why these channels can't be exchanged with the others of their groups; empty if they can."""
        try:
            moved = pruned_twin(self.network, exchanged_sides(self.network, self.coupled, removed))
            if reason := self._compare(self._outputs(moved), self._expected):
                return reason
            # Two shuffles may be none at this width, and one at another.
            moved = pruned_twin(self.network, exchanged_sides(self.network, self.coupled, removed, cut=True))
            return self._compare(self._outputs(moved), self._pruned(removed)[1])
        except Exception as error:
            return _in_words(error)

    def runs(self, removed: Removed) -> str:
        """Why the network without these channels does not run, or not with its outputs; empty if it does."""
        try:
            return self._fits(*self._pruned(removed))
        except Exception as error:
            return _in_words(error)

    def replaces(self, change_: Callable[[nn.Module], None], by: Mapping[str, Callable[[Tensor], Tensor]]) -> str:
        """Why a changed network is not the whole one with modules replaced by functions; empty if it is, and runs.

        Args:
            change_: changes a copy in place.
            by: module names to what they do instead.
        """
        shared = {id(p): p for p in self.network.parameters()}
        changed, expected = deep_copy(self.network), deep_copy(self.network, shared)
        try:
            for name, function in by.items():
                expected.get_submodule(name).forward = function
            change_(changed)
            found = self._outputs(changed)
            return self._compare(found, self._outputs(expected)) or self._fits(changed, found)
        except Exception as error:
            return _in_words(error)

    def _fits(self, pruned: nn.Module, found: list[list[Tensor]]) -> str:
        """Why a network does not give the outputs' shapes, in training mode as well; empty if it does."""
        try:
            before, after = ([o.shape for o in out[0]] for out in (self._expected, found))
            if before != after:
                return f"it would change the output from {_shapes(before)} to {_shapes(after)}"
            own = deep_copy(pruned, {id(p): p for p in pruned.parameters()})  # training would move shared buffers
            if self._training is not None and training_shapes(own, self.calls[0]) != self._training:
                return "it would break the network in training mode, where it worked before"
        except Exception as error:
            return _in_words(error)
        return ""

    def _pruned(self, removed: Removed) -> tuple[nn.Module, list[list[Tensor]]]:
        """The network without these channels, and its outputs; one question after the other is of the same."""
        key = {n: (self.coupled[n], tuple(c)) for n, c in removed.items()}
        if self._last is None or self._last[0] != key:
            twin = pruned_twin(self.network, kept_sides(self.network, self.coupled, removed))
            self._last = key, twin, self._outputs(twin)
        return self._last[1:]

    def _masked(self, removed: Removed) -> list[list[Tensor]]:
        handles = []
        for group, channels in removed.items():
            for name, side, _, index in indices(self.coupled[group].slices, set(channels)):
                if side == IN and index:
                    layer = self.network.get_submodule(name)
                    handles.append(layer.register_forward_pre_hook(_zero(layer, torch.tensor(index)), with_kwargs=True))
        try:
            return self._outputs(self.network)
        finally:
            for handle in handles:
                handle.remove()

    def _outputs(self, network: nn.Module) -> list[list[Tensor]]:
        found = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for call in self.calls:
                torch.default_generator.manual_seed(0)  # a CPU's alone: those of the user's devices are not put back
                with outputs_of(network, self._ends) as more:
                    out = [*tree_leaves(call.map(torch.clone).on(network)), *more.values()]
                found.append([o for o in out if isinstance(o, Tensor) and _floats(o)])
        return found

    def _compare(self, found: list[list[Tensor]], expected: list[list[Tensor]]) -> str:
        for a, b in zip(sum(found, []), sum(expected, []), strict=True):
            if a.shape != b.shape:
                return f"it would change the output from {tuple(b.shape)} to {tuple(a.shape)}"
            largest = b[b.isfinite()].abs().max() if b.isfinite().any() else b.new_zeros(())
            if not torch.allclose(a, b, rtol=0.0, atol=float(largest) * self.tolerance, equal_nan=True):
                off = float((a - b).abs().nan_to_num().max() / largest.clamp_min(1e-300))
                return (
                    "without them the network would compute another function: on the way channels are permuted, "
                    f"shifted or mixed by their position (the outputs differ by {off:.1e} of the largest)"
                )
        return ""


def _zero(layer: nn.Module, index: Tensor) -> Callable[..., Any]:
    def before(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        dim = -1 if isinstance(layer, nn.Linear) else 1 - layer.get_parameter("weight").dim()
        if args:
            return (args[0].index_fill(dim, index, 0.0), *args[1:]), given
        return (), {**given, "input": given["input"].index_fill(dim, index, 0.0)}

    return before


def _in_words(error: Exception) -> str:
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    known = {
        "integer division or modulo by zero": "a number of channels in the forward becomes zero",
        "split_with_sizes": "the forward splits its channels at fixed numbers",
        "is invalid for input of size": "the forward holds a number of channels as a constant",
    }
    meaning = next((words for part, words in known.items() if part in text), "the network would not run")
    return f"{meaning} ({text[:160]})"


def _floats(x: Tensor) -> bool:
    return x.is_floating_point()


def _shapes(shapes: list[torch.Size]) -> list[tuple[int, ...]]:
    return [tuple(s) for s in shapes]
