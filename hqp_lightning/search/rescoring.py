"""Scores of a network in the middle of a step: what the last validation measured is of another network by then.

And those of criteria to compare with, of which a validation measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from hqp_lightning.core import fisher
from hqp_lightning.core.calls import Call
from hqp_lightning.core.saliency import saliency
from hqp_lightning.errors import SurgeryError
from hqp_lightning.loop.batches import prepared
from hqp_lightning.loop.calls import Receiver
from hqp_lightning.loop.network import fisher_context, per_sample_loss
from hqp_lightning.loop.options import ISOMORPHIC, MAGNITUDE, PruningOptions
from hqp_lightning.loop.ranks import merged
from hqp_lightning.loop.scores import Scored, look
from hqp_lightning.loop.untouched import untouched
from hqp_lightning.surgery import Shadow

__all__ = ["rescored"]

T = TypeVar("T")

SAMPLES = 512
"""Validation samples, over all ranks, that are enough to rank channels by."""


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
    """
    if options.estimator == MAGNITUDE:
        return shadow.group_norms()

    def whole() -> tuple[Scored, fisher.FisherState]:
        scored, state = Scored(), fisher.FisherState()
        for batch, call in _calls(trainer, pl_module, network, options):
            scored = scored if scored.groups else look(shadow, options.units)
            loss = partial(per_sample_loss, pl_module, network, batch, options.loss_fn, call)
            state = fisher.merge(state, scored.fisher(network, options.estimator, loss))
            if state.samples * trainer.world_size >= SAMPLES:
                break
        return scored, state

    scored, state = merged(trainer, *_everywhere(trainer, pl_module, whole))
    if options.estimator == ISOMORPHIC:
        return shadow.isomorphic_taylor(fisher.compute(state))
    return saliency(fisher.compute(state), scored.groups, options.estimator, scored.units)


def _calls(
    trainer: Trainer, pl_module: LightningModule, network: nn.Module, options: PruningOptions
) -> Iterator[tuple[Any, Call]]:
    """Validation batches, and what the network is called with for each."""
    receiver = Receiver(trainer, pl_module, network, options.loss_fn)
    limit, samples = options.fisher_batches or SAMPLES, math.ceil(SAMPLES / trainer.world_size)
    for i, batch in enumerate(prepared(trainer, pl_module, "val", limit, samples=samples)):
        yield batch, receiver.call(batch, i)


def _everywhere(trainer: Trainer, pl_module: LightningModule, work: Callable[[], T]) -> T:
    """What ``work`` gives on this rank; a failure on one rank alone is told before the ranks meet again."""
    found, failure = None, None
    try:
        with untouched(trainer, pl_module), fisher_context(trainer):
            found = work()
    except Exception as error:
        failure = error
    if not trainer.strategy.reduce_boolean_decision(failure is None):
        raise SurgeryError(f"the scores within a step failed: {failure or 'on another rank'}") from failure
    return cast(T, found)
