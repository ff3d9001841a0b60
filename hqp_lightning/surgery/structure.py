"""A model's structure as plain data: record it, apply it to a fresh model.

The structure is absolute (every tensor's shape, every layer's channel attributes), so that applying it needs neither
a dependency graph nor the history of prunes, and shrinks a dense model as well as it grows a pruned one back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.errors import SurgeryError

__all__ = ["CHANNEL_ATTRIBUTES", "Structure", "apply_structure_", "record", "resized"]

CHANNEL_ATTRIBUTES = (
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "num_channels",
    "num_groups",
    "normalized_shape",
    "num_parameters",
    "embedding_dim",
)


@dataclass(frozen=True)
class Structure:
    """Shapes of all tensors and channel attributes of all layers, by qualified name."""

    shapes: Mapping[str, tuple[int, ...]]
    attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]]

    def to_plain(self) -> dict[str, Any]:
        """Dicts, lists and ints only, so that ``torch.load(..., weights_only=True)`` accepts it."""
        return {
            "shapes": {n: list(s) for n, s in self.shapes.items()},
            "attributes": {
                m: {k: list(v) if isinstance(v, tuple) else v for k, v in a.items()} for m, a in self.attributes.items()
            },
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Structure:
        """Inverse of :meth:`to_plain`."""
        return cls(
            {n: tuple(s) for n, s in plain["shapes"].items()},
            {
                m: {k: tuple(v) if isinstance(v, list) else v for k, v in a.items()}
                for m, a in plain["attributes"].items()
            },
        )


def record(module: nn.Module) -> Structure:
    """The structure of ``module`` as it stands.

    >>> record(nn.Sequential(nn.Linear(3, 2))).attributes["0"]
    {'in_features': 3, 'out_features': 2}
    """
    attributes = {}
    for name, child in module.named_modules():
        found = {k: v for k in CHANNEL_ATTRIBUTES if _is_plain(v := child.__dict__.get(k))}
        if found:
            attributes[name] = found
    return Structure({n: tuple(t.shape) for n, t in _tensors(module)}, attributes)


def apply_structure_(module: nn.Module, structure: Structure) -> None:
    """Give ``module`` the recorded shapes and attributes, in place; parameters keep their identity.

    Where a tensor's shape changes, the values that fit are kept and new ones are zero: load the state dict next.

    Raises:
        SurgeryError: ``structure`` belongs to another architecture; ``module`` is unchanged then.
    """
    tensors = dict(_tensors(module))
    missing, extra = sorted(set(structure.shapes) - set(tensors)), sorted(set(tensors) - set(structure.shapes))
    ranks = [n for n, s in structure.shapes.items() if n in tensors and len(s) != tensors[n].dim()]
    if missing or extra or ranks:
        raise SurgeryError(
            "the recorded structure is of another model: "
            f"{len(missing)} tensors only in the record {missing[:3]}, {len(extra)} only in the model {extra[:3]}, "
            f"{len(ranks)} of another rank {ranks[:3]}. Build the model with the arguments that it was trained with."
        )
    with torch.no_grad():
        for name, shape in structure.shapes.items():
            if tuple(tensors[name].shape) != shape:
                replace_data_(tensors[name], resized(tensors[name], shape))
    for name, values in structure.attributes.items():
        child = module.get_submodule(name)
        for key, value in values.items():
            setattr(child, key, value)


def resized(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of ``shape`` holding the leading block of ``tensor`` that fits, zero elsewhere."""
    out = tensor.detach().new_zeros(shape)
    block = tuple(slice(0, min(a, b)) for a, b in zip(shape, tensor.shape, strict=True))
    out[block] = tensor.detach()[block]
    return out


def replace_data_(tensor: Tensor, value: Tensor) -> None:
    """Point ``tensor`` at new data of any shape, keeping its identity and memory format; drops its gradient."""
    was_channels_last = tensor.dim() == 4 and not tensor.is_contiguous() and _channels_last(tensor)
    tensor.grad = None
    tensor.data = value.contiguous(memory_format=torch.channels_last) if was_channels_last else value.contiguous()


def _channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(type(v) is int for v in value)
    return type(value) is int
