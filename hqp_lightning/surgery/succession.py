"""Let the layers that read a unit take over what it did when it goes: compensation between two networks.

A block that becomes the identity, or a gate that becomes its mean, leaves the next layers another sum or product to
read than they were trained on. Each of them (a *successor*) is fitted so that what it gives is, as well as it can, what
it gave before: with *x* what it reads now, *x*₀ and *W*₀ what it read and was, and *y* = *W*₀ *x*₀ - *W* *x*, its
weights gain the ridge regression of *y* on *x* (`hqp_lightning.core.compensation`), pulled towards no change.

One after the other, in the order in which they are called, for each changes what the next one reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.core.calls import Call, as_call
from hqp_lightning.core.modes import evaluating
from hqp_lightning.surgery.compensation import Seen, watched
from hqp_lightning.surgery.readers import Reader, changed, fitting

__all__ = ["Beside", "beside", "successors"]

MOST = 12
"""Successors that are fitted: a residual stream may be read by all blocks to the end of the network."""
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def successors(network: nn.Module, units: Sequence[str], call: Call | tuple[Any, ...]) -> list[str]:
    """Names of the layers that read what ``units`` return, in the order of their calls, `MOST` at most.

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

    def enters(self, name: str, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a module is called."""
        self._calls[name] = self._calls.get(name, 0) + 1
        x = args[0] if args else kwargs.get("input")
        if name in self._able and not _depthwise(m) and isinstance(x, Tensor) and x.requires_grad:
            self._read.append(name)

    def leaves(self, name: str, m: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor | None:
        """After it; what it returns takes the place of its output."""
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return None
        if name in self._units:
            return out.detach().requires_grad_().clone()
        return out.detach() if isinstance(m, _LAYERS) and not _depthwise(m) else None

    def found(self) -> list[str]:
        """Those that were called once."""
        return [n for n in dict.fromkeys(self._read) if self._calls[n] == 1]


class Beside(Seen):
    """What a layer read in two networks; made by `beside`."""

    def __init__(self, network: nn.Module, reference: nn.Module, reader: Reader, rank: int, world_size: int) -> None:
        super().__init__(network, [reader], rank, world_size)
        self._reference = reference
        self._was: Tensor | None = None

    def run(self, call: Call | tuple[Any, ...]) -> None:
        """One batch through both networks."""
        self._was = None
        as_call(call).on(self._reference)
        super().run(call)

    def was(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What it reads in the reference: a hook."""
        self._was = args[0] if args else kwargs["input"]

    def _read(self, name: str, layer: nn.Module, x: Tensor, out: Tensor) -> None:
        if self._was is not None and self._was.shape == x.shape:
            dim = -1 if isinstance(layer, nn.Linear) else 1 - layer.get_parameter("weight").dim()
            super()._read(name, layer, torch.cat([x, self._was.to(x.dtype)], dim), out)


@contextmanager
def beside(
    network: nn.Module, reference: nn.Module, successor: str, rank: int = 0, world_size: int = 1
) -> Iterator[Beside]:
    """Inside, each `Beside.run` adds up what the successor read, in eval mode; both networks are as before after it.

    Args:
        network: without its units.
        reference: with them.
        successor: name of a layer that read one.
        rank: of this process.
        world_size: number of processes; each holds its share of the rows back.
    """
    layer, old = network.get_submodule(successor), reference.get_submodule(successor)
    seen = Beside(network, reference, changed(successor, old, layer), rank, world_size)
    handle = old.register_forward_pre_hook(seen.was, with_kwargs=True)
    try:
        with evaluating(reference), watched(network, seen):
            yield seen
    finally:
        handle.remove()


def _depthwise(layer: nn.Module) -> bool:
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == getattr(layer, "in_channels", 0)
