"""Torch-Pruning's criteria for the channels of our groups, to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.surgery.graph import Coupled, importance, pruning_function
from hqp_lightning.surgery.slicing import Slice

__all__ = ["group_norms", "isomorphic_taylor"]


def group_norms(network: nn.Module, coupled: Mapping[str, Coupled]) -> dict[str, Tensor]:
    """Its ``GroupMagnitudeImportance`` as it stands, by group name; tied channels count by their mean."""
    return _of_gates(network, coupled, "Magnitude")


def isomorphic_taylor(
    network: nn.Module, coupled: Mapping[str, Coupled], gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Its ``GroupTaylorImportance``, as a place in (0, 1] among all gates of groups of the same layers.

    Isomorphic pruning (Fang et al., ECCV 2024, arXiv 2407.04616) ranks groups of one kind alone, and takes the same
    share of each kind: the same place.

    Args:
        network: whose groups these are.
        coupled: by name.
        gradients: of the loss, by the parameter's name; it counts as zero where there is none.
    """
    parameters = dict(network.named_parameters())
    for name, p in parameters.items():
        p.grad = gradients[name].to(p, copy=True) if name in gradients else torch.zeros_like(p)
    try:
        found = _of_gates(network, coupled, "Taylor")
    finally:
        for p in parameters.values():
            p.grad = None
    kinds: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name in found:
        kinds.setdefault(_kind(network, coupled[name]), []).append(name)
    for names in kinds.values():
        places = torch.cat([found[n] for n in names]).argsort(stable=True).argsort() + 1
        shares = (places / len(places)).split([len(found[n]) for n in names])
        found |= dict(zip(names, shares, strict=True))
    return found


def _of_gates(network: nn.Module, coupled: Mapping[str, Coupled], kind: str) -> dict[str, Tensor]:
    values = {n: importance(kind, _as_theirs(network, c.slices)) for n, c in coupled.items()}
    shape = {n: (c.group.blocks, c.group.gates) for n, c in coupled.items()}
    return {n: v.view(shape[n]).mean(0) for n, v in values.items() if v is not None}


class _Item(tuple):
    """A pair (dependency, indices) that also knows the root's indices, as Torch-Pruning's."""

    root_idxs: list[int]

    def __new__(cls, pair: tuple[Any, list[int]], root_idxs: list[int]) -> _Item:
        item = super().__new__(cls, pair)
        item.root_idxs = root_idxs
        return item


def _as_theirs(network: nn.Module, slices: Iterable[Slice]) -> list[_Item]:
    """A group as its criteria take it; they do not count bare parameters."""
    items, layers = [], dict(network.named_modules())
    for s in slices:
        if (layer := layers.get(s.name)) is not None:
            cut, target = pruning_function(layer, s.side), SimpleNamespace(module=layer)
            dependency = SimpleNamespace(layer=layer, pruning_fn=cut, target=target, handler=cut)
            items.append(_Item((dependency, list(s.inputs)), list(s.channels)))
    return items


def _kind(network: nn.Module, coupled: Coupled) -> tuple[tuple[str, str], ...]:
    """The classes of the layers that lose channels, and on which side."""
    layers = dict(network.named_modules())
    return tuple(sorted((type(layers.get(s.name)).__qualname__, s.side) for s in coupled.slices))
