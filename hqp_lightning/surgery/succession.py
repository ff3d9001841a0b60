"""Let the layers that read a unit take over what it did when it goes: compensation between two networks.

A block that becomes the identity, or a gate that becomes its mean, leaves the next layers another sum or product to
read than they were trained on. Each of them (a *successor*) is fitted so that what it gives is, as well as it can, what
it gave before: with *x* what it reads now, *x*₀ and *W*₀ what it read and was, and *y* = *W*₀ *x*₀ - *W* *x*, its
weights gain the ridge regression of *y* on *x* (`hqp_lightning.core.compensation`), pulled towards no change.

One after the other, in the order in which they are called, for each changes what the next one reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hqp_lightning.core.calls import Call, as_call
from hqp_lightning.core.modes import evaluating
from hqp_lightning.core.precision import exact_arithmetic
from hqp_lightning.surgery.compensation import Seen
from hqp_lightning.surgery.readers import Reader, changed, fitting

__all__ = ["Beside", "Successor", "beside", "successors"]

MOST = 12
"""Successors that are fitted: a residual stream may be read by all blocks to the end of the network."""
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True, slots=True)
class Successor:
    """A layer that reads what a unit returned.

    Attributes:
        name: qualified name.
        norm: the BatchNorm that alone takes its outputs, whose running mean can move; empty if there is none.
    """

    name: str
    norm: str = ""


def successors(network: nn.Module, units: Sequence[str], call: Call | tuple[Any, ...]) -> list[Successor]:
    """The layers that read what ``units`` return, in the order of their calls, `MOST` at most.

    Between them and the unit may stand whatever has no weights of its own to fit: sums, activations, norms, pooling,
    depthwise layers. It is found by which inputs depend on the unit's output once every other layer's is cut off.

    Args:
        network: without the units; it is as before afterwards.
        units: names of modules in it.
        call: to try it with.
    """
    look = _Look(fitting(network), units)
    trained = [p for p in network.parameters() if p.requires_grad]
    handles = []
    try:
        for p in trained:
            p.requires_grad_(False)
        for name, m in network.named_modules():
            if name in units or not list(m.children()):
                handles.append(m.register_forward_pre_hook(partial(look.enters, name), with_kwargs=True))
                handles.append(m.register_forward_hook(partial(look.leaves, name)))
        with evaluating(network), torch.inference_mode(False), torch.enable_grad():
            as_call(call).map(lambda t: t.detach().clone()).on(network)
    finally:
        for handle in handles:
            handle.remove()
        for p in trained:
            p.requires_grad_()
    return look.found()[:MOST]


class _Look:
    """Hooks for one pass in which an input requires a gradient only if it depends on a unit by no other layer."""

    def __init__(self, able: Mapping[str, nn.Module], units: Sequence[str]) -> None:
        self._able, self._units = able, units
        self._read: list[str] = []
        self._calls: dict[str, int] = {}
        self._norms: set[str] = set()
        self._outputs: list[tuple[str, Tensor, list[str]]] = []  # layer, what it gave, who was given just that

    def enters(self, name: str, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a module is called."""
        self._calls[name] = self._calls.get(name, 0) + 1
        x = args[0] if args else kwargs.get("input")
        if name in self._able and not _depthwise(m) and isinstance(x, Tensor) and x.requires_grad:
            self._read.append(name)
        for _, out, takers in self._outputs:
            if x is out:
                takers.append(name)
        if isinstance(m, _BatchNorm):
            self._norms.add(name)

    def leaves(self, name: str, m: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor | None:
        """After it; what it returns takes the place of its output."""
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return None
        if name in self._units:
            return out.detach().requires_grad_().clone()
        if not isinstance(m, _LAYERS) or _depthwise(m):
            return None
        self._outputs.append((name, out.detach(), []))
        return self._outputs[-1][1]

    def found(self) -> list[Successor]:
        """Those that were called once."""
        behind = {name: takers[0] for name, _, takers in self._outputs if len(takers) == 1}
        alone = {n: m for n, m in behind.items() if m in self._norms and self._calls[m] == 1}
        return [Successor(n, alone.get(n, "")) for n in dict.fromkeys(self._read) if self._calls[n] == 1]


class Beside(Seen):
    """What a successor read in two networks; made by `beside`."""

    def __init__(
        self, network: nn.Module, reference: nn.Module, successor: Successor, reader: Reader, rank: int, world_size: int
    ) -> None:
        super().__init__(network, [reader], rank, world_size)
        self._reference, self._successor = reference, successor
        self._was: Tensor | None = None

    def run(self, call: Call | tuple[Any, ...]) -> None:
        """One batch through both networks, as far as the successor."""
        self._batch += 1
        for network in (self._reference, self._network):
            with suppress(_ReachedError):
                as_call(call).on(network)
        self._was = None

    def norm_of(self, name: str) -> str | None:
        """The BatchNorm that takes the successor's outputs."""
        return self._successor.norm or None

    def read_(self, layer: nn.Module, x: Tensor, before: bool) -> None:
        """What it reads: first in the reference, then now."""
        if before:
            self._was = x.detach()
            return
        if self._was is not None and self._was.shape == x.shape:
            dim = -1 if isinstance(layer, nn.Linear) else 1 - layer.get_parameter("weight").dim()
            self._read(self._successor.name, layer, torch.cat([x.detach(), self._was.to(x.dtype)], dim), x)


@contextmanager
def beside(
    network: nn.Module, reference: nn.Module, successor: Successor, rank: int = 0, world_size: int = 1
) -> Iterator[Beside]:
    """Inside, each `Beside.run` adds up what the successor read, in eval mode; both networks are as before after it.

    Args:
        network: without its units.
        reference: with them.
        successor: of a unit.
        rank: of this process.
        world_size: number of processes; each holds its share of the rows back.
    """
    layer, old = network.get_submodule(successor.name), reference.get_submodule(successor.name)
    seen = Beside(network, reference, successor, changed(successor.name, old, layer), rank, world_size)

    def hook(before: bool) -> Callable[..., None]:
        def read(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.read_(m, args[0] if args else kwargs["input"], before)
            raise _ReachedError

        return read

    handles = [m.register_forward_pre_hook(hook(m is old), with_kwargs=True) for m in (old, layer)]
    try:
        with evaluating(network), evaluating(reference), torch.no_grad(), exact_arithmetic():
            yield seen
    finally:
        for handle in handles:
            handle.remove()


class _ReachedError(BaseException):  # not an Exception: code that catches those must not catch this
    """The rest of a forward pass is of no interest."""


def _depthwise(layer: nn.Module) -> bool:
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == getattr(layer, "in_channels", 0)
