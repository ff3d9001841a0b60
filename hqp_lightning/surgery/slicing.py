"""What a layer loses with its channels: which tensors along which dimension, and which attributes say how many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hqp_lightning.errors import SurgeryError
from hqp_lightning.surgery.structure import Structure, record

__all__ = ["IN", "OUT", "THROUGH", "Slice", "indices", "kept_by", "structure_of", "taken_by", "weights_of", "width"]

IN, OUT, THROUGH = "in", "out", "through"
"""Sides of a layer: it reads the channels, it writes them, or they pass through it one by one."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Channels of one side of a layer that belong to a group.

    Attributes:
        name: qualified name of the layer, or of a bare parameter.
        side: ``IN``, ``OUT`` or ``THROUGH``.
        dim: the dimension of a bare parameter.
        inputs: channel indices of that side of the layer.
        channels: for each of ``inputs``, the channel of the group.
    """

    name: str
    side: str
    dim: int
    inputs: tuple[int, ...]
    channels: tuple[int, ...]


def indices(slices: Iterable[Slice], removed: set[int]) -> Iterator[tuple[str, str, int, list[int]]]:
    """Name, side, dimension and the layer's own indices of a group's ``removed`` channels."""
    for s in slices:
        yield s.name, s.side, s.dim, [i for i, c in zip(s.inputs, s.channels, strict=True) if c in removed]


def width(network: nn.Module, name: str, side: str, dim: int) -> int:
    """How many channels that side of the layer has."""
    layer = _layer(network, name)
    if layer is None:
        return network.get_parameter(name).shape[dim]
    if isinstance(layer, nn.Linear):
        return layer.in_features if side == IN else layer.out_features
    if isinstance(layer, _ConvNd):
        return layer.in_channels if side == IN else layer.out_channels
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1]
    return int(layer.num_parameters if isinstance(layer, nn.PReLU) else layer.num_features)  # type: ignore[arg-type]


def kept_by(network: nn.Module, chosen: Mapping[tuple[str, str, int], Sequence[int]]) -> dict[str, Tensor]:
    """The flat indices that each tensor keeps when sides of layers keep (or reorder) these channels.

    Args:
        network: as it stands; it is not changed.
        chosen: (name, side, dimension) to the layer's own channel indices, in their new order.

    Returns:
        Parameter or buffer name to flat indices into it, of its new shape; tensors that keep all are not among them.
    """
    return taken_by(network, chosen, lambda t: torch.arange(t.numel()).view(t.shape))


def taken_by(
    network: nn.Module,
    chosen: Mapping[tuple[str, str, int], Sequence[int]],
    of: Callable[[Tensor], Tensor] = Tensor.detach,
) -> dict[str, Tensor]:
    """What is left of each tensor when sides of layers keep these channels; arguments as of `kept_by`.

    Args:
        network: as it stands.
        chosen: see there.
        of: gives what is sliced in the place of a tensor, of its shape.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    left: dict[str, Tensor] = {}
    for (name, side, dim), channels in chosen.items():
        for tensor, along, index in _sliced(network, name, side, dim, list(channels)):
            whole = left[tensor] if tensor in left else of(tensors[tensor])
            left[tensor] = whole.index_select(along, torch.tensor(index, dtype=torch.long))
    return left


def structure_of(
    network: nn.Module, kept: Mapping[str, Tensor], chosen: Mapping[tuple[str, str, int], Sequence[int]]
) -> Structure:
    """The structure of ``network`` once its tensors keep ``kept``."""
    now = record(network)
    attributes = {n: dict(a) for n, a in now.attributes.items()}
    for (name, side, _), channels in chosen.items():
        layer, count = _layer(network, name), len(channels)
        if isinstance(layer, nn.Linear):
            attributes[name]["in_features" if side == IN else "out_features"] = count
        elif isinstance(layer, _ConvNd):
            sides = {IN: ("in_channels",), OUT: ("out_channels",)}.get(side, ("in_channels", "out_channels", "groups"))
            attributes[name].update(dict.fromkeys(sides, count))
        elif isinstance(layer, nn.LayerNorm):
            attributes[name]["normalized_shape"] = (*layer.normalized_shape[:-1], count)
        elif layer is not None:
            attributes[name]["num_parameters" if isinstance(layer, nn.PReLU) else "num_features"] = count
    return Structure({**now.shapes, **{n: tuple(k.shape) for n, k in kept.items()}}, attributes, now.replaced)


def weights_of(network: nn.Module, slices: Iterable[Slice]) -> int:
    """How many parameters go with all of these channels, as long as nothing else goes."""
    sliced = (t for s in slices for t in _sliced(network, s.name, s.side, s.dim, list(s.inputs)))
    shapes = {n: p.shape for n, p in network.named_parameters()}
    return sum(len(index) * shapes[n].numel() // shapes[n][along] for n, along, index in sliced if n in shapes)


def _sliced(
    network: nn.Module, name: str, side: str, dim: int, index: list[int]
) -> Iterator[tuple[str, int, list[int]]]:
    """The tensors of a side of a layer, the dimension of its channels there, and the indices along it."""
    layer = _layer(network, name)
    if layer is None:
        yield name, dim % network.get_parameter(name).dim(), index
        return
    if isinstance(layer, nn.LayerNorm):
        yield from ((f"{name}.{k}", len(layer.normalized_shape) - 1, index) for k in _own(layer))
    elif not isinstance(layer, (nn.Linear, _ConvNd)):
        yield from ((f"{name}.{k}", 0, index) for k in _own(layer))
    elif side == IN:
        groups = layer.groups if isinstance(layer, _ConvNd) else 1
        if groups > 1:  # a filter sees the channels of its own block, counted from there
            block = width(network, name, IN, 0) // groups
            within = [i for i in index if i < block]
            if sorted(i % block for i in index) != sorted(within * groups):
                raise SurgeryError(f"{name!r} has {groups} groups, which would not lose the same channels")
            index = within
        yield f"{name}.weight", 0 if getattr(layer, "transposed", False) else 1, index
    else:
        transposed = getattr(layer, "transposed", False) and side == OUT
        yield f"{name}.weight", 1 if transposed else 0, index
        if layer.bias is not None:
            yield f"{name}.bias", 0, index
        # What a subclass has besides: a factor for each filter (weight standardisation of NFNets).
        count = width(network, name, OUT, 0)
        more = ((n, t) for n, t in layer.named_parameters(recurse=False) if n not in ("weight", "bias"))
        yield from ((f"{name}.{n}", 0, index) for n, t in more if t.dim() and t.numel() == len(t) == count)


def _own(layer: nn.Module) -> list[str]:
    """A layer's tensors that have one value per channel (a step counter has none)."""
    own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return [n for n, t in own if t.dim()]


def _layer(network: nn.Module, name: str) -> nn.Module | None:
    """The layer of that name, or None where it is a bare parameter's."""
    try:
        return network.get_submodule(name)
    except AttributeError:
        return None
