"""Copies of the network that the user's own code keeps up to date: they are cut along, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.loop.averaging import averages
from hqp_lightning.loop.trainer import loose

__all__ = ["Twins", "check_copies", "is_average", "twins_of"]

_AVERAGES = {"ema", "average", "averaged", "averaging", "avg", "momentum", "target", "shadow", "swa", "polyak"}
_OWN = ("lightning.", "lightning_fabric.", "pytorch_lightning.", "hqp_lightning.")


class Twins:
    """Which modules of the network's structure follow it, and have to lose what it loses.

    An average of its weights is known by its name or class (`is_average`); another module follows if something but an
    optimizer wrote to its parameters since training began. A teacher that stays as it is does not, nor does a second
    network that is trained for itself. Where the average is what is pruned, what is trained follows it.

    Args:
        pl_module: the user's module, when training begins.
        network: the part of it that is pruned.
        trainer: with its optimizers.
    """

    def __init__(self, pl_module: LightningModule, network: nn.Module, trainer: Trainer) -> None:
        self.trainer, self._began, self._twins = trainer, trainer.global_step, twins_of(pl_module, network)
        name = next(n for n, m in pl_module.named_modules() if m is network)
        average = bool(name) and is_average(pl_module, name)
        self.following = {n for n in self._twins if average or is_average(pl_module, n)}
        self._versions = {n: _versions(t) for n, t in self._twins.items() if n not in self.following}

    def undecided(self) -> bool:
        """Whether a step has to wait, until a training batch has shown who follows."""
        if self._versions and self.trainer.global_step > self._began:
            trained = {id(p) for o in self.trainer.optimizers for p, state in o.state.items() if state}
            for name, versions in self._versions.items():
                twin = self._twins[name]
                own = any(p.grad is not None or id(p) in trained for p in twin.parameters())
                if not own and _versions(twin) != versions:
                    self.following.add(name)
            self._versions = {}
        return bool(self._versions)


def twins_of(pl_module: nn.Module, network: nn.Module) -> dict[str, nn.Module]:
    """Modules of ``pl_module`` with the parameters of ``network`` by name and shape, but of their own, by name."""
    wanted, own = _shapes(network), {id(p) for p in network.parameters()}
    found: dict[str, nn.Module] = {}
    for name, module in pl_module.named_modules():
        inside = any(name.startswith(f"{n}.") for n in found)
        if inside or not wanted or module is network or _shapes(module) != wanted:
            continue
        if not any(id(p) in own for p in module.parameters()):
            found[name] = module
    return found


def is_average(pl_module: nn.Module, name: str) -> bool:
    """Whether the name of a module, or the class of what holds it, says that it is an average of weights.

    Examples:
        >>> is_average(nn.ModuleDict({"net_ema": nn.Linear(1, 1)}), "net_ema")
        True
        >>> is_average(nn.ModuleDict({"schema": nn.Linear(1, 1)}), "schema")
        False
    """
    parts = name.split(".")
    holders = [pl_module.get_submodule(".".join(parts[: i + 1])) for i in range(len(parts))]
    return any(_says_average(word) for word in [*parts, *(type(h).__name__ for h in holders)])


def check_copies(trainer: Trainer, pl_module: LightningModule, network: nn.Module) -> None:
    """Refuse copies of the weights that are no module of ``pl_module``: a prune can't cut them, nor take that back.

    Raises:
        ConfigurationError: the module or a callback keeps the weights once more, as tensors or as a hidden average.
    """
    # What is cut along anyway, and callbacks, which are looked into themselves; others may hold them, too.
    known = {id(x) for x in (*pl_module.modules(), *averages(trainer), *loose(trainer).callbacks)}
    callbacks = [c for c in loose(trainer).callbacks if not type(c).__module__.startswith(_OWN)]
    for owner in (pl_module, *callbacks):
        for name, value in list(vars(owner).items()):
            if name.startswith("_") and isinstance(owner, nn.Module) and name in nn.Module().__dict__:
                continue
            if id(value) in known:
                continue
            kind = _copy(value, network, _says_average(name) or owner is not pl_module and _says_average(_class(owner)))
            if kind is not None:
                raise ConfigurationError(
                    f"{_class(owner)}.{name} keeps the network's weights once more, as {kind}, which a prune can't cut "
                    "along. Keep an average as a submodule of the LightningModule (torch's AveragedModel, timm's "
                    "ModelEmaV2, a deepcopy named 'ema'), or use Lightning's EMAWeightAveraging."
                )


def _copy(value: Any, network: nn.Module, named: bool, depth: int = 0) -> str | None:
    if value is None or isinstance(value, (str, bytes, int, float, Tensor)):
        return None
    if isinstance(value, nn.Module):
        return f"a {_class(value)} of its structure" if named and any(_structured(value, network)) else None
    shapes = _shapes(network)
    if isinstance(value, Mapping) and len(shapes) > 1:
        given = {n: tuple(t.shape) for n, t in value.items() if isinstance(t, Tensor)}
        if all(given.get(n) == s for n, s in shapes.items()):
            return f"a dict of {len(given)} tensors"
    if isinstance(value, (list, tuple)) and len(value) >= len(shapes) > 1 and all(isinstance(t, Tensor) for t in value):
        own = {id(p) for p in network.parameters()}
        if [tuple(t.shape) for t in value] == list(shapes.values()) and not any(id(t) in own for t in value):
            return f"a list of {len(value)} tensors"
    if isinstance(value, (list, tuple)):
        inner = dict(enumerate(value))
    else:
        inner = dict(getattr(value, "__dict__", {})) if depth == 0 else {}
    kinds = (_copy(v, network, named or _says_average(str(n)), depth + 1) for n, v in inner.items() if depth < 2)
    return next((k for k in kinds if k is not None), None)


def _structured(module: nn.Module, network: nn.Module) -> Iterator[nn.Module]:
    wanted = _shapes(network)
    return (m for m in module.modules() if m is not network and _shapes(m) == wanted)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in module.named_parameters()}


def _versions(module: nn.Module) -> list[tuple[int, float]]:
    # The norm, too: what is written through ``.data`` moves no version.
    return [(p._version, float(p.detach().cpu().double().norm())) for p in module.parameters()]


def _class(value: object) -> str:
    return type(value).__name__


def _says_average(word: str) -> bool:
    return bool({w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", word)} & _AVERAGES)
