"""Apply a cut to what lives: a model, its optimizers, an averaged copy. In place; parameters keep their identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hqp_lightning.errors import SurgeryError
from hqp_lightning.surgery.folding import Removal
from hqp_lightning.surgery.structure import Structure, replace_data_

__all__ = ["Cut", "apply_cut_", "drop_from_", "slice_optimizers_"]


@dataclass(frozen=True)
class Cut:
    """What a prune does to a model, ready to be applied: see `apply_cut_`.

    Attributes:
        kept: parameter or buffer name to the flat indices (into the old tensor) of what survives, of the new shape.
        structure: the structure afterwards.
        macs: MACs afterwards, for one sample.
        params: number of parameters afterwards.
        removals: units that have to be gone when it is applied; what it keeps is of what they leave.
    """

    kept: Mapping[str, Tensor]
    structure: Structure
    macs: float
    params: int
    removals: tuple[Removal, ...] = ()


def apply_cut_(module: nn.Module, cut: Cut) -> None:
    """Slice every tensor of ``module`` and set its layers' channel attributes.

    A parameter stays the same object and only gets new data, so whoever holds it (optimizer, scheduler, hooks, the
    user) holds the living one.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, index in cut.kept.items():
            if tensors[name].shape != index.shape:
                replace_data_(tensors[name], _take(tensors[name], index))
    for name, values in cut.structure.attributes.items():
        child = module.get_submodule(name)
        for key, value in values.items():
            setattr(child, key, value)


def slice_optimizers_(optimizers: Iterable[Optimizer], module: nn.Module, cut: Cut) -> None:
    """Slice momentum, exp_avg and the like of every parameter in ``module``; call it after `apply_cut_`.

    State tensors of the parameter's old shape are sliced with the parameter's own indices; single numbers (step
    counters) stay.

    Raises:
        SurgeryError: an optimizer keeps state of another shape (factored as Adafactor's, flat as that of LBFGS, or the
            block scales of an 8-bit optimizer), which has no such slice.
    """
    kept = {id(p): cut.kept[n] for n, p in module.named_parameters() if n in cut.kept}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            index = kept.get(id(parameter))
            if index is None:
                continue
            for key, value in state.items():
                if isinstance(value, Tensor) and value.numel() > 1 and value.shape != index.shape:
                    if value.dim() != index.dim() or value.numel() <= int(index.max()):
                        raise SurgeryError(
                            f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for a parameter "
                            f"of shape {tuple(index.shape)}, which can't be pruned along; use SGD, Adam or AdamW."
                        )
                    like = torch.empty_like(parameter, dtype=value.dtype, device=value.device)
                    state[key] = like.copy_(_take(value, index))


def drop_from_(
    optimizers: Iterable[Optimizer], gone: Iterable[Tensor], instead: Mapping[Tensor, Tensor] | None = None
) -> None:
    """Take parameters out of their groups, with their state; a group may be left with none.

    Args:
        optimizers: that may hold them.
        gone: the parameters.
        instead: some of them to others that take their places: an optimizer that is made anew of what is left, as after
            a checkpoint was loaded, has them there.

    Raises:
        SurgeryError: an optimizer keeps one state for all parameters (LBFGS), which can't lose one.
    """
    lost, instead = {id(p) for p in gone}, instead or {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not any(id(p) in lost for p in group["params"]):
                continue
            if isinstance(optimizer, torch.optim.LBFGS):
                raise SurgeryError(
                    "LBFGS keeps one state for all parameters, so that none can go; use SGD, Adam or AdamW."
                )
            held = [p for p in group["params"] if id(p) not in lost or p in instead]
            if "param_names" in group:
                names = zip(group["params"], group["param_names"], strict=True)
                group["param_names"][:] = [n for p, n in names if id(p) not in lost or p in instead]
            for p in group["params"]:
                if id(p) in lost:
                    optimizer.state.pop(p, None)
            group["params"][:] = [instead.get(p, p) for p in held]


def _take(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor.detach().flatten()[index.to(tensor.device)]
