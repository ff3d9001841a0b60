"""The network as the search first sees it: what it receives, its groups, and scores of it to compare with."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.modules.batchnorm import _BatchNorm

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.loop.batches import batches, prepared
from hqp_lightning.loop.calls import Receiver
from hqp_lightning.loop.network import find_network
from hqp_lightning.loop.options import MAGNITUDE, PruningOptions
from hqp_lightning.loop.pricing import priced
from hqp_lightning.loop.trainer import load_validation
from hqp_lightning.loop.twins import Twins, check_copies
from hqp_lightning.loop.untouched import fixed_seed
from hqp_lightning.search.rescoring import rescored
from hqp_lightning.search.state import PruningState
from hqp_lightning.surgery import Shadow

__all__ = ["begin_", "compared"]


def begin_(
    trainer: Trainer, pl_module: LightningModule, state: PruningState, options: PruningOptions
) -> tuple[Call, Twins]:
    """Trace the network with the first validation batch; the state notes its groups, and those that can't be cut.

    Returns what it received (on the CPU), and the modules that may have to be cut along.

    Raises:
        ConfigurationError: the batch does not fit, the network can't be traced, or has nothing to prune.
    """
    if any(isinstance(o, ZeroRedundancyOptimizer) for o in trainer.optimizers):
        raise ConfigurationError(
            "ZeroRedundancyOptimizer keeps a share of the state on every rank, which a prune can't slice; use the "
            "optimizer that it wraps."
        )
    _, network = find_network(pl_module, options.module)
    check_copies(trainer, pl_module, network)
    load_validation(trainer)
    receiver = Receiver(trainer, pl_module, network, options.loss_fn)
    with fixed_seed(), torch.no_grad():
        batch = next(prepared(trainer, pl_module, "val", 1), None)
        if batch is None:
            raise ConfigurationError("the validation loader is empty, so there is nothing to judge a step by.")
        call = receiver.call(batch)
        if options.estimator != MAGNITUDE:
            receiver.check_loss(batch, call)
        if options.recalibrate_batches and any(isinstance(m, _BatchNorm) for m in network.modules()):
            of = trainer, pl_module, network, options.loss_fn
            next(batches(*of, "train", 1, 0, call), None)  # fails now, or never
    example = call.map(lambda x: (x[:2] if x.dim() else x).cpu().clone())
    example = trainer.strategy.broadcast(example)  # one shape everywhere
    shadow = Shadow(network, example, options.ignore)
    state.note(shadow.notes)
    if not shadow.groups():
        left = "".join(f" {n.group}: {n.reason}." for n in shadow.notes[:3])
        raise ConfigurationError(
            f"{type(network).__name__} has no prunable channel groups: every convolution and linear layer is a head, "
            f"ignored ({list(options.ignore) or 'none'}), or can't be cut.{left}"
        )
    if options.by_latency and state.price is None:
        state.price = priced(trainer, network, example, shadow, options)
    if not state.channels:
        state.channels, state.dense_macs = {g.name: g.channels for g in shadow.groups()}, shadow.macs
    return example, Twins(pl_module, network, trainer)


def compared(
    trainer: Trainer, pl_module: LightningModule, state: PruningState, options: PruningOptions, example: Call
) -> dict[str, torch.Tensor]:
    """The network's scores by a criterion to compare with; empty when the search is over.

    Raises:
        SurgeryError: they failed on this rank or on another.
    """
    if state.search.stopped is not None:
        return {}
    network = find_network(pl_module, options.module)[1]
    return rescored(trainer, pl_module, network, Shadow(network, example, options.ignore), options)
