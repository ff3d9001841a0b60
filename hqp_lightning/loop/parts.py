"""Networks whose parts or methods are called, not they themselves: found by what the parts compute, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import ConfigurationError

__all__ = ["Way", "way_through"]

_TRIED = 4  # preprocessing may be modules, too


@dataclass(frozen=True, slots=True)
class Way:
    """The module that gets the network's input, and the one that returns its output; both are it, as a rule."""

    first: nn.Module
    last: nn.Module


@dataclass(slots=True)
class _Called:
    name: str
    module: nn.Module
    call: Call
    output: Any = None


def way_through(pl_module: LightningModule, network: nn.Module, run: Callable[[], Any]) -> Way:
    """How a step that never calls the network runs it: from which part to which.

    The first part's input, given to the network, has to make the last part's output: a method that only calls the parts
    in another way (``self.head(self.backbone(x))``, ``forward_features``) passes, one that computes something else does
    not.

    Args:
        pl_module: the user's module.
        network: a part of it, or itself.
        run: runs the step on a batch.

    Raises:
        ConfigurationError: the parts compute something else than the network's ``forward``, or none is called; the
            message names what is called.
    """
    called = _called_by(pl_module, run)
    inside = {m for m in network.modules() if m is not network and not isinstance(m, Metric)}
    parts = [c for c in called if c.module in inside]
    for start, first in enumerate(parts[:_TRIED]):
        for output in _tensors_of(first.call, network):
            last = next((c for c in parts[start:] if _same(c.output, output)), None)
            if last is not None:
                return Way(first.module, last.module)
    raise ConfigurationError(_refusal(pl_module, network, called, parts))


def _called_by(pl_module: LightningModule, run: Callable[[], Any]) -> list[_Called]:
    """The calls of modules that no other module makes, in their order."""
    called: list[_Called] = []
    inside: list[_Called] = []
    handles = []

    def before(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inside.append(_Called(name, module, Call(args, kwargs).map(lambda x: x.detach().clone())))
        if len(inside) == 1:
            called.append(inside[0])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        inside.pop().output = output.detach().clone() if isinstance(output, Tensor) else output

    for name, module in pl_module.named_modules():
        if module is not pl_module:
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, args, kwargs, name=name: before(name, m, args, kwargs), with_kwargs=True
                )
            )
            handles.append(module.register_forward_hook(after))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return called


def _tensors_of(call: Call, network: nn.Module) -> list[Tensor]:
    """What the network returns for a call, if it can be called so."""
    try:
        output = call.on(network)
    except Exception:  # an input of another part of it
        return []
    return [output] if isinstance(output, Tensor) else []


def _same(a: Any, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4)


def _refusal(pl_module: LightningModule, network: nn.Module, called: list[_Called], parts: list[_Called]) -> str:
    name = next((n for n, m in pl_module.named_modules() if m is network), "") or type(network).__name__
    if parts:
        names = list(dict.fromkeys(c.name for c in parts))
        shown = f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        return (
            f"validation_step never calls {name!r}, but parts of it ({shown}), by a method or one by one, and what "
            f"they compute is not what {type(network).__name__}.forward does. Call {name!r} itself there, let its "
            "forward do the same, or name the part that is called with module=..."
        )
    others = list(dict.fromkeys(c.name for c in called if any(True for _ in c.module.parameters())))
    return (
        f"validation_step never calls {name!r}; it calls {others or 'no module with parameters'}. Name the network "
        "that is called with module=..."
    )
