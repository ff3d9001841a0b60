"""Find the user's network inside the LightningModule, and what a batch feeds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.loop.losses import LossFn, default_loss, pair
from hqp_lightning.loop.twins import is_average
from hqp_lightning.loop.untouched import eager

__all__ = ["LossFn", "find_network", "fisher_context", "per_sample_loss"]


def find_network(pl_module: LightningModule, path: str | None) -> tuple[str, nn.Module]:
    """The network to prune and its qualified name (``""`` for the LightningModule itself).

    Without a path this is the only child that holds parameters, averages and second names for parts of another child
    aside, else the LightningModule itself; inside a wrapper of ``torch.compile`` it is what was compiled, whose
    parameters are the same.

    Raises:
        ConfigurationError: no module has that path.
    """
    children = {n: c for n, c in pl_module.named_children() if any(True for _ in c.parameters())}
    if path is None:
        networks = {n: c for n, c in children.items() if not isinstance(c, Metric)}
        networks = {n: c for n, c in networks.items() if len(networks) == 1 or not is_average(pl_module, n)}
        within = {m for c in networks.values() for m in c.modules() if m is not c}
        networks = {n: c for n, c in networks.items() if c not in within}  # a second name for a part of another
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


def per_sample_loss(
    pl_module: LightningModule, network: nn.Module, batch: Any, loss_fn: LossFn | None, call: Call | None = None
) -> Tensor:
    """The loss of a batch: the user's, or the one that fits the targets of an ``(x, y)`` batch (`default_loss`).

    Args:
        pl_module: the user's module.
        network: the part of it that is pruned.
        batch: as ``validation_step`` gets it.
        loss_fn: the user's, if there is one.
        call: what the network receives of this batch; by default its ``x``.

    Raises:
        ConfigurationError: no ``loss_fn``, and the batch or the network's output fit no usual loss.
    """
    if loss_fn is not None:
        return loss_fn(pl_module, batch)
    x, y = pair(batch)
    call = Call((x,)) if call is None else call
    inputs = call.tensors()
    if len(inputs) == 1 and len(inputs[0]) > len(y) and torch.equal(inputs[0][: len(y)].to(x.dtype), x):
        call = Call((x,))  # with copies for test-time augmentation behind it
    # Cloned, since networks may work in place, and the pass may be repeated.
    return default_loss(call.map(torch.clone).on(network), y)


@contextmanager
def fisher_context(trainer: Trainer) -> Iterator[None]:
    """Gradients inside validation: it runs under ``no_grad`` in ``fit`` and ``inference_mode`` in ``validate``."""
    with eager(), torch.inference_mode(False), torch.enable_grad(), trainer.precision_plugin.val_step_context():
        yield


def _uncompiled(name: str, network: nn.Module) -> tuple[str, nn.Module]:
    inner = network._modules.get("_orig_mod")
    return (name, network) if inner is None else (f"{name}._orig_mod", inner)
