"""A private copy of a network on the CPU, to trace and to try things on; the live one is not touched."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hqp_lightning.core.calls import Call, as_call
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.surgery.cost import layer_macs

__all__ = ["copied", "deep_copy", "duplicated", "floating_tensors", "on_cpu", "training_shapes"]

_DEPTH = 4
"""How deep tensors may lie in the containers of an attribute."""


def copied(module: nn.Module) -> nn.Module:
    """A float32 copy on the CPU in eval mode, every parameter with gradients: frozen ones would break the tracing.

    Raises:
        ConfigurationError: the module can't be copied.
    """
    twin = duplicated(module)
    for m in twin.modules():
        if isinstance(m, nn.SyncBatchNorm):  # whose training mode waits for other processes, on their GPUs
            m.__class__ = _LocalBatchNorm  # type: ignore[assignment]
    return twin.cpu().float().eval().requires_grad_(True)


def deep_copy(module: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy; tensors in attributes that were computed, which torch does not copy, lose their graph in it.

    The empty dictionaries of every module, some ten for hooks that nobody has registered, are most of the time that
    `copy.deepcopy` takes, and made here.

    Args:
        module: is not changed.
        memo: as for `copy.deepcopy`.
    """
    memo = {} if memo is None else memo
    for m in module.modules():
        for key, value in vars(m).items():
            if type(value) in (dict, OrderedDict) and not value:
                memo.setdefault(id(value), type(value)())
            elif key not in ("_parameters", "_modules"):
                for x in _computed(value, _DEPTH):
                    memo.setdefault(id(x), x.detach().clone())
    return copy.deepcopy(module, memo)


def duplicated(module: nn.Module) -> nn.Module:
    """A copy as it stands, where it stands.

    Raises:
        ConfigurationError: the module can't be copied.
    """
    guard = getattr(module, "_prevent_trainer_and_dataloaders_deepcopy", None)
    try:
        if guard is None:
            return deep_copy(module)
        with guard():  # a LightningModule would copy its trainer
            return deep_copy(module)
    except Exception as error:
        raise ConfigurationError(
            f"{type(module).__name__} can't be copied, which planning a prune needs: {error}. "
            "Don't keep open files or loaders on the module, or name the network with module=..."
        ) from error


def on_cpu(example: Call | Sequence[Any]) -> Call:
    """Two samples at most of every tensor, floats in float32; anything else as it is."""
    return as_call(example).map(lambda x: _one_on_cpu(x[:2] if x.dim() else x))


def floating_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The floating-point parameters and buffers by name."""
    for name, t in [*module.named_parameters(), *module.named_buffers()]:
        if t.is_floating_point():
            yield name, t


def training_shapes(module: nn.Module, example: Call | Sequence[Any]) -> tuple[tuple[int, ...], ...] | None:
    """Shapes of the outputs in training mode, or None if a plain forward does not work in that mode.

    Auxiliary heads run in training only. The module's buffers change, the random state does not.
    """
    # BatchNorm refuses to normalise a single value per channel.
    doubled = as_call(example).map(lambda x: torch.cat([x, x]) if x.dim() and len(x) == 1 else x)
    module.train()
    try:
        with torch.random.fork_rng(devices=[]):
            return layer_macs(module, doubled)[1]
    except Exception:  # whatever user code raises
        return None
    finally:
        module.eval()


def _computed(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield value
    elif depth and isinstance(value, nn.Module):
        for m in value.modules():
            yield from _computed(vars(m), depth - 1)
    elif depth and isinstance(value, (Mapping, list, tuple, set, deque)):
        for x in value.values() if isinstance(value, Mapping) else value:
            yield from _computed(x, depth - 1)


class _LocalBatchNorm(_BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _one_on_cpu(x: Tensor) -> Tensor:
    return x.detach().cpu().float().clone() if x.is_floating_point() else x.detach().cpu().clone()
