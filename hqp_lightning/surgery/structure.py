"""A model's structure as plain data: record it, apply it to a fresh model.

The structure is absolute (every tensor's shape, every layer's channel attributes, every unit that was replaced), so
that applying it needs neither a dependency graph nor the history of prunes, and shrinks a dense model as well as it
grows a pruned one back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.errors import SurgeryError
from hqp_lightning.surgery.replaced import SCALE, forms, scales, set_forms_

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
    """Shapes of all tensors, channel attributes of all layers, and forms of what was replaced, by qualified name."""

    shapes: Mapping[str, tuple[int, ...]]
    attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]]
    replaced: Mapping[str, str] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Dicts, lists and ints only, so that ``torch.load(..., weights_only=True)`` accepts it."""
        return {
            "shapes": {n: list(s) for n, s in self.shapes.items()},
            "attributes": {
                m: {k: list(v) if isinstance(v, tuple) else v for k, v in a.items()} for m, a in self.attributes.items()
            },
            "replaced": dict(self.replaced),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Structure:
        """Inverse of `to_plain`."""
        return cls(
            {n: tuple(s) for n, s in plain["shapes"].items()},
            {
                m: {k: tuple(v) if isinstance(v, list) else v for k, v in a.items()}
                for m, a in plain["attributes"].items()
            },
            dict(plain.get("replaced", {})),
        )


def record(module: nn.Module) -> Structure:
    """The structure of ``module`` as it stands.

    Examples:
        >>> record(nn.Sequential(nn.Linear(3, 2))).attributes["0"]
        {'in_features': 3, 'out_features': 2}
    """
    attributes = {}
    for name, child in module.named_modules():
        found = {k: v for k in CHANNEL_ATTRIBUTES if _is_plain(v := child.__dict__.get(k))}
        if found:
            attributes[name] = found
    return Structure({n: tuple(t.shape) for n, t in _tensors(module)}, attributes, forms(module))


def apply_structure_(module: nn.Module, structure: Structure) -> None:
    """Give ``module`` the recorded shapes and attributes, in place; parameters keep their identity.

    Where a tensor's shape changes, the values that fit are kept and new ones are zero: load the state dict next.

    Raises:
        SurgeryError: ``structure`` belongs to another architecture; ``module`` is unchanged then.
    """
    before, factors = forms(module), {n: p.detach().clone() for n, p in scales(module)}
    problem = _replace_(module, structure) or _difference(module, structure)
    if problem:
        set_forms_(module, before, factors)
        raise SurgeryError(
            f"the recorded structure is of another model: {problem}. Build the model with the arguments that it was "
            "trained with."
        )
    tensors = dict(_tensors(module))
    with torch.no_grad():
        for name, shape in structure.shapes.items():
            if tuple(tensors[name].shape) != shape:
                replace_data_(tensors[name], resized(tensors[name], shape))
    for name, values in structure.attributes.items():
        child = module.get_submodule(name)
        for key, value in values.items():
            setattr(child, key, value)


def _replace_(module: nn.Module, structure: Structure) -> str:
    """Replace and put back what the structure says; why that can't be, or nothing."""
    ones = {n: torch.ones(structure.shapes[f"{n}.weight"]) for n, f in structure.replaced.items() if f == SCALE}
    try:
        set_forms_(module, structure.replaced, ones)
    except AttributeError as error:
        return f"of its replaced modules {sorted(structure.replaced)[:3]} one is only in the record ({error})"
    return ""


def _difference(module: nn.Module, structure: Structure) -> str:
    """What else than channels differs, in words; empty if nothing does."""
    tensors = dict(_tensors(module))
    missing, extra = sorted(set(structure.shapes) - set(tensors)), sorted(set(tensors) - set(structure.shapes))
    layers = sorted(set(structure.attributes) - {n for n, _ in module.named_modules()})
    other = [n for n, s in structure.shapes.items() if n in tensors and not _same_kind(tensors[n].shape, s)]
    if not (missing or extra or layers or other):
        return ""
    return (
        f"{len(missing)} tensors only in the record {missing[:3]}, {len(extra)} only in the model {extra[:3]}, "
        f"{len(layers)} layers only in the record {layers[:3]}, {len(other)} tensors of another rank or kernel "
        f"{other[:3]}"
    )


def resized(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of ``shape`` holding the leading block of ``tensor`` that fits, zero elsewhere."""
    out = tensor.detach().new_zeros(shape)
    block = tuple(slice(0, min(a, b)) for a, b in zip(shape, tensor.shape, strict=True))
    out[block] = tensor.detach()[block]
    return out


def replace_data_(tensor: Tensor, value: Tensor) -> None:
    """Point ``tensor`` at new data of any shape, keeping its identity and memory format; drops its gradient."""
    layout = torch.channels_last if _channels_last(tensor) else torch.contiguous_format
    tensor.grad = None
    # Not value.contiguous(...), which leaves the strides of a 1x1 kernel, contiguous either way, as they are: kernels
    # are chosen by strides, and training after a rollback would differ in the last bits.
    if tensor.shape != value.shape:
        # The node that adds up a leaf's gradient lives as long as any graph that it is in, a kept loss or logits, and
        # expects the old shape for ever. Torch makes a new one where the type of the data changes, not the shape.
        other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
        tensor.data = torch.empty(0, dtype=other, device=value.device)
    tensor.data = torch.empty(value.shape, dtype=value.dtype, device=value.device, memory_format=layout).copy_(value)


def _same_kind(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether only channels differ: a prune changes neither the rank nor a kernel's height and width."""
    return len(a) == len(b) and (len(a) < 4 or tuple(a[2:]) == tuple(b[2:]))


def _channels_last(tensor: Tensor) -> bool:
    """By the strides, so that 1x1 and depthwise kernels, which are contiguous either way, count as what they were."""
    if tensor.dim() != 4 or not tensor.is_contiguous(memory_format=torch.channels_last):
        return False
    return tensor.stride(1) == 1 and tensor.stride(3) == tensor.shape[1]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(type(v) is int for v in value)
    return type(value) is int
