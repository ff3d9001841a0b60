"""Find the user's network inside the LightningModule, and what a batch feeds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from hqp_lightning.errors import ConfigurationError

__all__ = ["LossFn", "find_network", "fisher_context", "network_inputs", "per_sample_loss"]

LossFn = Callable[[LightningModule, Any], Tensor]


def find_network(pl_module: LightningModule, path: str | None) -> tuple[str, nn.Module]:
    """The network to prune and its qualified name (``""`` for the LightningModule itself).

    Without a path this is the only child that holds parameters, else the LightningModule itself; inside a wrapper of
    ``torch.compile`` it is what was compiled, whose parameters are the same.

    Raises:
        ConfigurationError: no module has that path.
    """
    children = {n: c for n, c in pl_module.named_children() if any(True for _ in c.parameters())}
    if path is None:
        networks = {n: c for n, c in children.items() if not isinstance(c, Metric)}
        own = any(True for _ in pl_module.parameters(recurse=False))
        found = next(iter(networks.items())) if len(networks) == 1 and not own else ("", pl_module)
        return _uncompiled(*found)
    try:
        return _uncompiled(path, pl_module.get_submodule(path))
    except AttributeError:
        raise ConfigurationError(
            f"module={path!r} is not in {type(pl_module).__name__}; its children with parameters are "
            f"{sorted(children) or 'none'}. Give the network's attribute name, or '' for the module itself."
        ) from None


def per_sample_loss(pl_module: LightningModule, network: nn.Module, batch: Any, loss_fn: LossFn | None) -> Tensor:
    """The loss of a batch: the user's, or cross-entropy per sample for ``(x, y)`` batches.

    Raises:
        ConfigurationError: no ``loss_fn``, and the batch or the network's output do not fit cross-entropy.
    """
    if loss_fn is not None:
        return loss_fn(pl_module, batch)
    x, y = _pair(batch)
    logits = network(x)
    if not isinstance(logits, Tensor) or logits.dim() < 2 or y.is_floating_point() and y.shape != logits.shape:
        raise ConfigurationError(
            f"without loss_fn the network must return logits (N, classes) for integer targets; got "
            f"{tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__} for targets "
            f"{tuple(y.shape)} {y.dtype}. Pass loss_fn=lambda pl_module, batch: <per-sample losses>."
        )
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def network_inputs(
    pl_module: LightningModule, network: nn.Module, batch: Any, loss_fn: LossFn | None
) -> tuple[Any, ...]:
    """The positional arguments that a batch makes of the network; found by asking ``loss_fn`` if there is one.

    Raises:
        ConfigurationError: the batch is not ``(x, y)`` and there is no ``loss_fn``, or it never calls the network.
    """
    if loss_fn is None:
        return (_pair(batch)[0],)
    caught: list[tuple[Any, ...]] = []

    def catch(_: nn.Module, args: tuple[Any, ...]) -> None:
        caught.append(args)
        raise _CaughtError

    handle = network.register_forward_pre_hook(catch)
    try:
        loss_fn(pl_module, batch)
    except _CaughtError:
        return caught[0]
    finally:
        handle.remove()
    raise ConfigurationError(f"loss_fn never called the network ({type(network).__name__}); name it with module=...")


@contextmanager
def fisher_context(trainer: Trainer) -> Iterator[None]:
    """Gradients inside validation: it runs under ``no_grad`` in ``fit`` and ``inference_mode`` in ``validate``."""
    with torch.inference_mode(False), torch.enable_grad(), trainer.precision_plugin.val_step_context():
        yield


def _uncompiled(name: str, network: nn.Module) -> tuple[str, nn.Module]:
    inner = network._modules.get("_orig_mod")
    return (name, network) if inner is None else (f"{name}._orig_mod", inner)


class _CaughtError(Exception):
    pass


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(b, Tensor) for b in batch):
        return batch[0], batch[1]
    shown = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
    raise ConfigurationError(
        f"a batch is a {shown}, not a pair of tensors (x, y); pass loss_fn=lambda pl_module, batch: "
        "<per-sample losses of shape (N,)> so that batches of any form can be scored."
    )
