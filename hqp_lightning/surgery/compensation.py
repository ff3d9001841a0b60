"""Let the readers of channels that a cut removes take over what those did; see `hqp_lightning.core.compensation`.

What the readers see is collected from the network before the cut, a bounded part of them at a time:

    for part in parts(readers(network, cut)):
        with collecting(network, part) as seen:
            for call in batches:
                seen.run(call)
        gained |= seen.solve()
    apply_cut_(network, cut)
    add_(network, gained)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hqp_lightning.core.calls import Call, as_call
from hqp_lightning.core.compensation import STRENGTHS, Held, Moments, best, pool_, update_
from hqp_lightning.core.modes import evaluating
from hqp_lightning.core.precision import exact_arithmetic
from hqp_lightning.surgery.readers import Reader, rows_of

__all__ = ["Seen", "add_", "collecting", "parts", "watched", "writes"]

POSITIONS = 64
"""Positions of a map that are looked at in every sample."""
_HELD_SHARE = 4  # one sample in four of a batch makes no moments
_HELD_POSITIONS = 8
_HELD_ROWS = 512
_PART_BYTES = 192 << 20
_PIECE = 4 << 20  # numbers


def parts(found: Sequence[Reader], most: int = _PART_BYTES) -> list[list[Reader]]:
    """The readers in their order, as few parts as keep the moments of one part within ``most`` bytes."""
    made: list[list[Reader]] = []
    filled = 0
    for reader in found:
        blocks, inputs, outputs = reader.sizes
        held = blocks * (inputs + outputs) * _HELD_ROWS
        size = reader.weight.element_size() * (Moments.numbers(*reader.sizes) + held)
        if not made or filled + size > most:
            made.append([])
            filled = 0
        made[-1].append(reader)
        filled += size
    return made


class Seen:
    """What some readers saw: moments, and rows held back to choose λ by. Made by `collecting`."""

    def __init__(self, network: nn.Module, found: Sequence[Reader], rank: int, world_size: int) -> None:
        self._network, self._readers, self._batch = network, {r.name: r for r in found}, 0
        self.moments: dict[str, Moments] = {}
        self.held: dict[str, Held] = {}
        self._next = {r.name: rank * (_HELD_ROWS // world_size) for r in found}
        self._end = (rank + 1) * (_HELD_ROWS // world_size)
        self.strengths: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.behind: dict[tuple[str, str], int] = {}  # reader and the BatchNorm directly behind it
        self._last: tuple[str, Tensor, int] | None = None
        for r in found:
            sizes, like = r.sizes, r.weight
            self.moments[r.name] = Moments.zeros(*sizes, like=like)
            x, y = like.new_zeros(sizes[0], _HELD_ROWS, sizes[1]), like.new_zeros(sizes[0], _HELD_ROWS, sizes[2])
            self.held[r.name] = Held(x, y, like.new_zeros(_HELD_ROWS))

    def run(self, call: Call | tuple[Any, ...]) -> None:
        """One batch through the network."""
        as_call(call).on(self._network)
        self._batch += 1
        self._last = None

    def _norm(self, name: str, x: Tensor) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        # As it was written: what an activation changed in place is the same tensor and not the layer's output.
        if self._last is not None and x is self._last[1] and writes(x) == self._last[2]:
            pair = (self._last[0], name)
            self.behind[pair] = self.behind.get(pair, 0) + 1

    def _read(self, name: str, layer: nn.Module, x: Tensor, out: Tensor) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        self._last = (name, out, writes(out))
        reader = self._readers[name]
        with torch.autocast(x.device.type, enabled=False):
            x = x.detach().to(reader.weight.dtype)
            whole = 2 if isinstance(layer, nn.Linear) else layer.get_parameter("weight").dim()
            x = x if x.dim() >= whole else x[None]  # one sample without a batch axis
            alone = self._batch % _HELD_SHARE == _HELD_SHARE - 1  # a batch of one goes to the one or to the other
            held = len(x) // _HELD_SHARE or int(len(x) > 1 or alone)
            for rows in self._rows(layer, reader, x[: len(x) - held], POSITIONS):
                update_(self.moments[name], *rows)
            for rows in self._rows(layer, reader, x[len(x) - held :], _HELD_POSITIONS):
                self._hold(name, *rows)

    def _rows(self, layer: nn.Module, reader: Reader, x: Tensor, positions: int) -> Iterator[tuple[Tensor, Tensor]]:
        whole = x.flatten(1).isfinite().all(1)
        x = x if bool(whole.all()) else x[whole]  # without broken images
        return rows_of(layer, reader, x, positions, self._batch, _PIECE) if len(x) else iter(())

    def _hold(self, name: str, x: Tensor, y: Tensor) -> None:
        start = self._next[name]
        end, held = min(start + x.shape[1], self._end), self.held[name]
        held.x[:, start:end], held.y[:, start:end] = x[:, : end - start], y[:, : end - start]
        held.weight[start:end] = 1.0
        self._next[name] = end

    def norm_of(self, name: str) -> str | None:
        """The BatchNorm that takes a layer's outputs at every call, and nothing else's."""
        found = [n for (reader, n), calls in self.behind.items() if reader == name and calls == self.calls.get(name)]
        return found[0] if found and self.calls[found[0]] == self.calls[name] else None

    def pool_(self, add: Callable[[Tensor], Tensor]) -> None:
        """Make it what all processes saw, given a sum over them."""
        for name in self._readers:
            pool_(self.moments[name], add)
            held = self.held[name]
            held.x, held.y, held.weight = add(held.x), add(held.y), add(held.weight)  # each has rows of its own

    def solve(self, strengths: Sequence[float] = STRENGTHS) -> dict[str, Tensor]:
        """What tensors of the network gain, by name and in their shapes after the cut; on the CPU. Forgets the rest."""
        gained: dict[str, Tensor] = {}
        with torch.no_grad(), exact_arithmetic():
            for name, reader in self._readers.items():
                moments, held = self.moments.pop(name), self.held.pop(name)  # they are large, and not needed again
                if moments.count == 0:
                    continue
                layer, norm = self._network.get_submodule(name), self.norm_of(name)
                biased = getattr(layer, "bias", None) is not None
                with torch.autocast(reader.weight.device.type, enabled=False):
                    found = best(moments, held, biased or norm is not None, strengths)
                self.strengths[name] = found.strength
                gained[_join(name, "weight")] = reader.as_weight(found.weight).cpu()
                if biased:
                    gained[_join(name, "bias")] = reader.as_bias(found.shift).cpu()
                elif norm is not None and getattr(self._network.get_submodule(norm), "running_mean", None) is not None:
                    gained[_join(norm, "running_mean")] = -reader.as_bias(found.shift).cpu()
        return gained


@contextmanager
def collecting(network: nn.Module, found: Sequence[Reader], rank: int = 0, world_size: int = 1) -> Iterator[Seen]:
    """Inside, what ``found`` read in each `Seen.run` is added up; the network is in eval mode, and as before after it.

    Args:
        network: before the cut.
        found: some of its readers.
        rank: of this process.
        world_size: number of processes; each holds its share of the rows back.
    """
    seen = Seen(network, found, rank, world_size)
    with watched(network, seen):
        yield seen


@contextmanager
def watched(network: nn.Module, seen: Seen) -> Iterator[None]:
    """Inside, ``seen`` is told what its readers in ``network`` read, and which BatchNorm takes what they give."""
    handles = []
    try:
        for name, m in network.named_modules():
            if name in seen._readers:
                handles.append(m.register_forward_hook(_reading(seen, name), with_kwargs=True))
            elif isinstance(m, _BatchNorm):
                handles.append(m.register_forward_pre_hook(_norming(seen, name), with_kwargs=True))
        with evaluating(network), torch.no_grad(), exact_arithmetic():
            yield
    finally:
        for handle in handles:
            handle.remove()


def writes(x: Tensor) -> int:
    """How often a tensor was written to in place; of one made in inference mode nobody counts."""
    return 0 if x.is_inference() else x._version


def add_(network: nn.Module, gained: Mapping[str, Tensor]) -> None:
    """Add to the network's tensors, in place and rounded once; after the cut."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with torch.no_grad():
        for name, value in gained.items():
            tensor = tensors[name]
            tensor.copy_(tensor.to(value.dtype) + value.to(tensor.device))


def _reading(seen: Seen, name: str) -> Callable[..., None]:
    def read(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        seen._read(name, layer, args[0] if args else kwargs["input"], out)

    return read


def _norming(seen: Seen, name: str) -> Callable[..., None]:
    def norm(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen._norm(name, args[0] if args else kwargs["input"])

    return norm


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
