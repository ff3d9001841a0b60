"""The coupled channel groups of a network, as plain data. The only import of torch_pruning.

torch-pruning traces the layers, and how an index at one becomes an index at the next. Which channels go together is
walked by `walk`: its own walk keeps a list for every path, and never ends where channels are mixed by position (a 1-d
convolution over the channel vector), split and added, or multiplied with each other. There every channel of a layer is
reached once: whoever reaches it from a second channel of the root goes together with the first. Whether an index means
what the graph says is not asked here, but proved (`proof`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import lcm
from types import SimpleNamespace
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn

from hqp_lightning.records import ChannelGroup, Consumer, Filters
from hqp_lightning.surgery.slicing import IN, OUT, THROUGH, Slice
from hqp_lightning.surgery.ties import Ties
from hqp_lightning.surgery.walk import Reached, walk

__all__ = ["Coupled", "coupled_groups", "importance", "pruning_function"]

_OPS, _index_maps = tp.ops.OPTYPE, tp.dependency.index_mapping.update_index_mapping
_MIXING = (_OPS.CONV, _OPS.LINEAR)
_UNSUPPORTED = (_OPS.MHA, _OPS.LSTM, _OPS.EMBED, _OPS.GN)
_SLICED = (*_MIXING, _OPS.DEPTHWISE_CONV, _OPS.BN, _OPS.IN, _OPS.LN, _OPS.PRELU, _OPS.PARAMETER)


@dataclass(frozen=True)
class Coupled:
    """A group with all that goes with it.

    Attributes:
        group: name, readers, writers and gates.
        slices: the layers (and bare parameters) that lose channels.
        parts: numbers of equal parts that a split on the way may make of the channels.
        normalised: whether a LayerNorm normalises over its channels.
        problem: why the group can't be cut, as far as the graph says; empty if it may be tried.
    """

    group: ChannelGroup
    slices: tuple[Slice, ...]
    parts: tuple[int, ...] = ()
    normalised: bool = False
    problem: str = ""


def coupled_groups(
    network: nn.Module, run: Callable[[nn.Module], Any], ignored: set[nn.Module], macs: Mapping[str, float]
) -> list[Coupled]:
    """Trace ``network`` and walk its groups; a head's and those of ignored layers are not among them.

    Args:
        network: in eval mode, on the CPU, all parameters with gradients; what is not looked into stands in (`opaque`).
        run: runs it on its example inputs.
        ignored: layers whose output channels stay.
        macs: layer name to MACs.
    """
    graph = tp.DependencyGraph()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph.build_dependency(network, None, lambda m, _: run(m), verbose=False)
        except (ArithmeticError, LookupError, TypeError):
            # One operation whose channels it can't count ends its last part, the maps of indices, for all of them.
            if not hasattr(graph, "module2node"):
                raise
            counted = {"get_out_channels": graph.get_out_channels, "get_in_channels": graph.get_in_channels}
            for module, node in graph.module2node.items():
                for part in (tp.dependency.shape_infer.init_shape_information, _index_maps):
                    with suppress(ArithmeticError, LookupError, TypeError):
                        part(SimpleNamespace(module2node={module: node}, _2d_4d=graph._2d_4d, **counted))
    return list(_Walker(graph, {m: n for n, m in network.named_modules()}, macs).groups(ignored))


def importance(kind: str, group: Sequence[Any]) -> Tensor | None:
    """Torch-Pruning's importance ``kind`` of a group as it has them; None where no layer counts."""
    found: Tensor | None = getattr(tp.importance, f"Group{kind}Importance")()(group)
    return found


def pruning_function(layer: nn.Module, side: str) -> Callable[..., nn.Module]:
    """Torch-Pruning's function that cuts a side of a layer."""
    pruner = tp.function.PrunerBox[tp.ops.module2type(layer)]
    function: Callable[..., nn.Module] = pruner.prune_in_channels if side == IN else pruner.prune_out_channels
    return function


class _Walker:
    def __init__(self, graph: tp.DependencyGraph, names: dict[nn.Module, str], macs: Mapping[str, float]) -> None:
        self.graph, self.names, self.macs = graph, names, macs
        self.widest = 0
        for node in graph.module2node.values():
            if node.type in _SLICED:
                self.widest = max(self.widest, graph.get_in_channels(node) or 0, graph.get_out_channels(node) or 0)

    def groups(self, ignored: set[nn.Module]) -> Iterator[Coupled]:
        seen: set[nn.Module] = set()
        for module, node in list(self.graph.module2node.items()):
            if module in ignored or module in seen or not isinstance(module, (nn.Conv2d, nn.Linear)):
                continue
            pruner = self.graph.get_pruner_of_module(module)
            width = pruner.get_out_channels(module)
            reached, ties, hidden = walk(node, pruner.prune_out_channels, width, self._count)
            written = {r.node.module for r in reached if self.graph.is_out_channel_pruning_fn(r.handler)}
            seen |= written
            if not written & ignored and not self._is_head(reached):
                yield self._coupled(reached, ties, hidden)

    def _count(self, node: Any, handler: Any) -> int:
        """The channels where ``handler`` prunes ``node``; the widest layer's where it has no number of its own."""
        if node.type not in _SLICED:
            return self.widest
        reads = handler == self.graph.get_pruner_of_module(node.module).prune_in_channels
        return (self.graph.get_in_channels if reads else self.graph.get_out_channels)(node) or self.widest

    def _is_head(self, reached: list[Reached]) -> bool:
        """Whether cutting would take outputs of the network."""
        return any(
            r.node.type == _OPS.OUTPUT or (self.graph.is_out_channel_pruning_fn(r.handler) and not r.node.outputs)
            for r in reached
        )

    def _coupled(self, reached: list[Reached], ties: Ties, hidden: set[str]) -> Coupled:
        root = reached[0].node.module
        blocks, slices, problem = ties.blocks(), [], ""
        for r in reached:
            layer = r.node.module
            if r.node.type in _UNSUPPORTED:
                hidden.add(f"{self.names.get(layer, '')!r} ({type(layer).__name__} is not supported)")
            elif r.node.type in _SLICED and not (r.node.type == _OPS.PRELU and layer.num_parameters == 1):
                slices.append(self._slice(r))
                problem = problem or self._misread(r)
            elif self.widest in r.roots:
                problem = problem or "on the way positions are taken for channels"
        if hidden:
            problem = f"its channels go into or come from what can't be cut: {_listed(hidden)}"
        elif blocks is None:
            problem = problem or "its channels go together in sets of different sizes"
        blocks = lcm(blocks or 1, *(r.node.module.groups for r in reached if r.node.type == _OPS.CONV))
        if not problem and blocks == len(reached[0].roots) > 1:
            problem = "all of its channels go together"
        group = ChannelGroup(
            self.names[root],
            len(reached[0].roots),
            tuple(Consumer(s.name, s.inputs, s.channels) for s in slices if s.side == IN),
            tuple(self._filters(reached)),
            self._macs(reached),
            blocks,
        )
        if not group.consumers:
            problem = problem or "no convolution or linear layer reads it"
        normalised = any(r.node.type == _OPS.LN for r in reached)
        return Coupled(group, tuple(slices), tuple(sorted(self._parts(reached))), normalised, problem)

    def _slice(self, r: Reached) -> Slice:
        layer = r.node.module
        sides = {True: IN, False: OUT} if r.node.type in _MIXING else {}
        side = sides.get(r.handler == self.graph.get_pruner_of_module(layer).prune_in_channels, THROUGH)
        name = self.graph._param_to_name[layer] if r.node.type == _OPS.PARAMETER else self.names[layer]
        return Slice(name, side, r.node.pruning_dim, tuple(r.roots), tuple(r.roots.values()))

    def _misread(self, r: Reached) -> str:
        """Why the indices of a layer can't be right; empty if they may be."""
        node = r.node
        count = self._count(node, r.handler)
        name = self.names.get(node.module) or self.graph._param_to_name.get(node.module, "")
        if max(r.roots, default=0) >= count:
            return (
                f"channel {max(r.roots)} of {name!r} would have to go, which has {count}: on the way channels are "
                "mixed by their position, repeated or flattened with others"
            )
        if node.type == _OPS.CONV and node.module.groups > 1 and list(r.roots) != list(r.roots.values()):
            return f"the grouped convolution {name!r} sees its channels in another order"
        return ""

    def _filters(self, reached: list[Reached]) -> Iterator[Filters]:
        for r in reached:
            layer, name = r.node.module, self.names.get(r.node.module, "")
            if name in self.macs and self._slice(r).side != IN:
                for key in ["weight"] if layer.bias is None else ["weight", "bias"]:
                    dim = 1 if key == "weight" and getattr(layer, "transposed", False) else 0
                    yield Filters(f"{name}.{key}", dim, tuple(r.roots), tuple(r.roots.values()))

    def _macs(self, reached: list[Reached]) -> float:
        total = 0.0
        for r in reached:
            name = self.names.get(r.node.module, "")
            if name in self.macs:
                total += self.macs[name] * len(r.roots) / self._count(r.node, r.handler)
        return total / len(reached[0].roots)

    def _parts(self, reached: list[Reached]) -> set[int]:
        splits = {len(r.node.outputs) for r in reached if r.node.type == _OPS.SPLIT}
        slices = {2} if any(r.node.type == _OPS.SLICE for r in reached) else set()
        return {n for n in splits | slices if n > 1 and len(reached[0].roots) % n == 0}


def _listed(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
