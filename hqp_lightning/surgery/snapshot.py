"""Take and restore everything that a rollback needs: structure, tensors, optimizers, schedulers, averaged copies."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hqp_lightning.surgery.cut import drop_from_
from hqp_lightning.surgery.structure import Structure, apply_structure_, record

__all__ = ["Snapshot", "restore_", "take"]


@dataclass(frozen=True)
class Snapshot:
    """A copy on the CPU.

    Attributes:
        structure: shapes and channel attributes.
        tensors: every parameter and buffer by name, persistent or not.
        optimizers: per optimizer, ``{"state": {parameter name: state}, "groups": [hyperparameters], "names": [the
            parameter names of each group]}``.
        schedulers: state dict of every scheduler.
        averages: a snapshot of every averaged copy of the module.
    """

    structure: Structure
    tensors: Mapping[str, Tensor]
    optimizers: Sequence[Mapping[str, Any]] = ()
    schedulers: Sequence[Mapping[str, Any]] = ()
    averages: Sequence[Snapshot] = ()

    def is_of(self, module: nn.Module) -> bool:
        """Whether ``module`` holds this structure and, in its own types, these values."""
        mine = take(module)
        return mine.structure == self.structure and all(
            torch.equal(t, self.tensors[n].to(t.dtype)) for n, t in mine.tensors.items()
        )

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint: tensors, dicts, lists and numbers."""
        return {
            "structure": self.structure.to_plain(),
            "tensors": dict(self.tensors),
            "optimizers": [dict(o) for o in self.optimizers],
            "schedulers": [dict(s) for s in self.schedulers],
            "averages": [a.to_plain() for a in self.averages],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Snapshot:
        """Inverse of `to_plain`."""
        structure, averages = Structure.from_plain(plain["structure"]), map(cls.from_plain, plain["averages"])
        return cls(structure, plain["tensors"], (*plain["optimizers"],), (*plain["schedulers"],), (*averages,))


def take(
    module: nn.Module,
    optimizers: Iterable[Optimizer] = (),
    schedulers: Iterable[Any] = (),
    averages: Iterable[nn.Module] = (),
) -> Snapshot:
    """Copy ``module`` (and, for an undo, what trains it) to the CPU.

    Args:
        module: usually the whole LightningModule.
        optimizers: optimizers over its parameters; their state is kept by parameter name.
        schedulers: anything with ``state_dict`` and ``load_state_dict``.
        averages: modules that hold an averaged copy of ``module``.
    """
    names = {id(p): n for n, p in module.named_parameters()}
    return Snapshot(
        record(module),
        {n: _saved(t) for n, t in _tensors(module)},
        tuple(_optimizer_state(o, names) for o in optimizers),
        tuple(copy.deepcopy(s.state_dict()) for s in schedulers),
        tuple(take(a) for a in averages),
    )


def restore_(
    snapshot: Snapshot,
    module: nn.Module,
    optimizers: Iterable[Optimizer] = (),
    schedulers: Iterable[Any] = (),
    averages: Iterable[nn.Module] = (),
) -> None:
    """Put everything back, in place and bit for bit; parameters keep their identity, gradients are dropped.

    Raises:
        SurgeryError: the snapshot is of another architecture.
    """
    before = list(module.parameters())
    apply_structure_(module, snapshot.structure)
    now, optimizers = {id(p) for p in module.parameters()}, list(optimizers)
    drop_from_(optimizers, [p for p in before if id(p) not in now])  # a stand-in's
    with torch.no_grad():
        for name, tensor in _tensors(module):
            tensor.grad = None
            tensor.data.copy_(snapshot.tensors[name])
    names = {id(p): n for n, p in module.named_parameters()}
    for optimizer, saved in zip(optimizers, snapshot.optimizers, strict=False):
        _restore_optimizer_(optimizer, saved, names, module.parameters())
    for scheduler, state in zip(schedulers, snapshot.schedulers, strict=False):
        scheduler.load_state_dict(copy.deepcopy(dict(state)))
    for average, copied in zip(averages, snapshot.averages, strict=False):
        restore_(copied, average)


def _optimizer_state(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    state = {
        key: {k: _saved(v) if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in optimizer.state[p].items()}
        for key, p in _named(optimizer, names)
        if p in optimizer.state
    }
    groups = [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    listed = [[key for key, _ in _in_group(g, group, names)] for g, group in enumerate(optimizer.param_groups)]
    return {"state": state, "groups": groups, "names": listed}


def _restore_optimizer_(
    optimizer: Optimizer, saved: Mapping[str, Any], names: Mapping[int, str], parameters: Iterable[Tensor]
) -> None:
    owned = {names[id(p)]: p for p in parameters}
    for g, (group, listed) in enumerate(zip(optimizer.param_groups, saved.get("names", ()), strict=False)):
        now = dict(_in_group(g, group, names))
        held = {**owned, **now}  # a removed unit's parameters come back, each in its place
        group["params"][:] = [held[k] for k in listed if k in held] + [p for k, p in now.items() if k not in listed]
    for key, p in _named(optimizer, names):
        if key not in saved["state"]:
            optimizer.state.pop(p, None)
            continue
        optimizer.state[p] = {k: _placed(v, p) for k, v in saved["state"][key].items()}
    # Groups that came later, as when a backbone is unfrozen, stay, and begin without a state.
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=False):
        group.update(copy.deepcopy(values))


def _named(optimizer: Optimizer, names: Mapping[int, str]) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's parameters under their name in the module, or, for any other, under their place among others."""
    for g, group in enumerate(optimizer.param_groups):
        yield from _in_group(g, group, names)


def _in_group(g: int, group: Mapping[str, Any], names: Mapping[int, str]) -> Iterator[tuple[str, Tensor]]:
    others = 0
    for p in group["params"]:
        if id(p) in names:
            yield names[id(p)], p
        else:
            yield f"{g}/{others}", p
            others += 1


def _placed(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if value.shape != parameter.shape:  # a step counter: the optimizer decides where it lives
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _saved(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
