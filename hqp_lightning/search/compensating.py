"""Compensation on a live Trainer: its batches, its precision, its ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import SurgeryError, in_words
from hqp_lightning.loop.batches import training_calls
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.loop.ranks import summed
from hqp_lightning.loop.untouched import eager, fixed_seed
from hqp_lightning.surgery import Cut
from hqp_lightning.surgery.compensation import Seen, collecting, parts
from hqp_lightning.surgery.readers import Reader, readers

__all__ = ["compensations"]


def compensations(
    trainer: Trainer,
    pl_module: LightningModule,
    networks: Sequence[nn.Module],
    cut: Cut,
    options: PruningOptions,
    example: Call,
) -> list[dict[str, Tensor]]:
    """What the tensors of each network gain by the compensation of ``cut``, which is not made yet; equal on all ranks.

    Raises:
        SurgeryError: it failed on this rank or on another.
    """
    gained: list[dict[str, Tensor]] = [{} for _ in networks]
    if not options.compensate:
        return gained
    jobs = [(i, part) for i, network in enumerate(networks) for part in parts(readers(network, cut))]
    last: tuple[int, Seen] | None = None
    for i, part in [*jobs, (0, [])]:  # a last turn, which only solves
        seen, failure = None, None
        try:  # both, so that a failure of one rank alone is told before the ranks meet again
            if last is not None:
                gained[last[0]] |= last[1].solve()
                last = None  # its memory goes before that of the next part comes
            with fixed_seed(), trainer.precision_plugin.val_step_context(), eager():
                calls = training_calls(trainer, pl_module, networks[0], options.loss_fn, example)
                seen = _seen(trainer, networks[i], part, calls) if part else None
        except Exception as error:
            failure = error
        if not trainer.strategy.reduce_boolean_decision(failure is None):
            why = in_words(failure) if failure else "on another rank"
            raise SurgeryError(f"compensation failed: {why}") from failure
        if seen is not None:
            if trainer.world_size > 1:
                seen.pool_(partial(summed, trainer))
            last = i, seen
    return trainer.strategy.broadcast(gained)


def _seen(trainer: Trainer, network: nn.Module, part: Sequence[Reader], calls: Iterator[Call]) -> Seen:
    with collecting(network, part, trainer.global_rank, trainer.world_size) as seen:
        for call in calls:
            seen.run(call)
    return seen
