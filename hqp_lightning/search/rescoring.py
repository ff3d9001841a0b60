"""Scores of a network as a step finds it, or has left it: what the last validation measured may be of another one.

And those of criteria to compare with, of which a validation measures nothing.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from hqp_lightning.core import fisher
from hqp_lightning.core.branches import loss_rises
from hqp_lightning.core.calls import Call
from hqp_lightning.core.saliency import saliency
from hqp_lightning.errors import LossError, in_words
from hqp_lightning.loop.batches import prepared
from hqp_lightning.loop.calls import Receiver
from hqp_lightning.loop.losses import LossFn
from hqp_lightning.loop.network import fisher_context, per_sample_loss
from hqp_lightning.loop.options import ISOMORPHIC, MAGNITUDE, PruningOptions
from hqp_lightning.loop.ranks import agreed, merged
from hqp_lightning.loop.scores import Scored, look
from hqp_lightning.loop.untouched import untouched
from hqp_lightning.records import BRANCH
from hqp_lightning.surgery import Shadow

__all__ = ["rescored", "tried"]

SAMPLES = 512
"""Validation samples, over all ranks, that are enough to rank channels by."""

TRIED = 256
"""The same, to try branches with: of one network with and without a branch."""

WHAT = "the scores within a step"


def rescored(
    trainer: Trainer,
    pl_module: LightningModule,
    network: nn.Module,
    shadow: Shadow,
    options: PruningOptions,
) -> dict[str, Tensor]:
    """The saliency of the network as it stands, by validation samples that lie evenly; equal on all ranks.

    Args:
        trainer: of the run.
        pl_module: whose ``network`` a step has begun to cut.
        network: as it stands.
        shadow: of it.
        options: of the search.

    Raises:
        SurgeryError: it failed on this rank or on another.
        Exception: the user's own, from ``loss_fn``: it would have ended a validation, and ends the run here as well.
    """
    if options.estimator == MAGNITUDE:
        return shadow.group_norms()

    def whole() -> tuple[Scored, fisher.FisherState]:
        scored, state = Scored(), fisher.FisherState()
        with untouched(trainer, pl_module), fisher_context(trainer):
            for batch, call in _calls(trainer, pl_module, network, options, SAMPLES):
                scored = scored if scored.groups else look(shadow, options.units)
                loss = partial(_loss, pl_module, network, batch, options.loss_fn, call)
                state = fisher.merge(state, scored.fisher(network, options.estimator, loss))
                if state.samples * trainer.world_size >= SAMPLES:
                    break
        return scored, state

    scored, state = merged(trainer, *agreed(trainer, WHAT, whole))
    if options.estimator == ISOMORPHIC:
        return shadow.isomorphic_taylor(fisher.compute(state))
    return saliency(fisher.compute(state), scored.groups, options.estimator, scored.units)


def tried(
    trainer: Trainer,
    pl_module: LightningModule,
    network: nn.Module,
    shadow: Shadow,
    options: PruningOptions,
    scores: Mapping[str, Tensor],
) -> dict[str, float]:
    """By how much the loss is higher without each branch that has a score, nats; equal on all ranks.

    Args:
        trainer: of the run.
        pl_module: the user's.
        network: as it stands.
        shadow: of it.
        options: of the search.
        scores: of the network.

    Raises:
        SurgeryError: it failed on this rank or on another.
        Exception: the user's own, from ``loss_fn``: it would have ended a validation, and ends the run here as well.
    """
    branches = [u for u in look(shadow, options.units).units if u.kind == BRANCH and u.key in scores]
    if not branches:
        return {}

    def whole() -> fisher.FisherState:
        state = fisher.FisherState()
        with untouched(trainer, pl_module), fisher_context(trainer):
            for batch, call in _calls(trainer, pl_module, network, options, TRIED):
                loss = partial(_loss, pl_module, network, batch, options.loss_fn, call)
                state = fisher.merge(state, loss_rises(network, branches, loss))
                if state.samples * trainer.world_size >= TRIED:
                    break
        return state

    _, rises = merged(trainer, (), agreed(trainer, WHAT, whole))
    return {key: float(rise) for key, rise in fisher.compute(rises).items()}


def _calls(
    trainer: Trainer, pl_module: LightningModule, network: nn.Module, options: PruningOptions, samples: int
) -> Iterator[tuple[Any, Call]]:
    """Validation batches with so many samples on all ranks, and what the network is called with for each."""
    receiver = Receiver(trainer, pl_module, network, options.loss_fn)
    limit, share = options.fisher_batches or samples, math.ceil(samples / trainer.world_size)
    for i, batch in enumerate(prepared(trainer, pl_module, "val", limit, samples=share)):
        yield batch, receiver.call(batch, i)


def _loss(pl_module: LightningModule, network: nn.Module, batch: Any, loss_fn: LossFn | None, call: Call) -> Tensor:
    """See `per_sample_loss`; what fails in the network, which a step may have cut, is no fault of ``loss_fn``."""
    try:
        return per_sample_loss(pl_module, network, batch, loss_fn, call)
    except Exception as error:
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        if loss_fn is None or any(frame.f_locals.get("self") is network for frame in frames):
            raise
        raise LossError(f"loss_fn failed: {in_words(error)}") from error
