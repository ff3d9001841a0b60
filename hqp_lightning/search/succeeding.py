"""Units that went, on a live Trainer: the layers that read them take over, on its batches and on all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from hqp_lightning.core.calls import Call
from hqp_lightning.loop.batches import training_calls
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.loop.ranks import agreed, summed
from hqp_lightning.loop.untouched import eager, fixed_seed
from hqp_lightning.surgery import Cut
from hqp_lightning.surgery.compensation import add_
from hqp_lightning.surgery.succession import Beside, beside, successors

__all__ = ["succeed_"]

_WHAT = "compensation of units"


def succeed_(
    trainer: Trainer,
    pl_module: LightningModule,
    networks: Sequence[nn.Module],
    before: Sequence[nn.Module],
    cut: Cut,
    options: PruningOptions,
    example: Call,
) -> None:
    """Fit the layers that read the units of ``cut``, which are gone, in each network; equal on all ranks.

    Args:
        trainer: whose batches are used.
        pl_module: its module.
        networks: without the units; changed in place.
        before: copies of them from before.
        cut: of which the units went.
        options: of the search.
        example: a call in validation.

    Raises:
        SurgeryError: it failed on this rank or on another.
    """
    units = [r.unit.name for r in cut.removals]

    def look() -> tuple[list[Call], list[list[str]]]:
        with _quiet(trainer):
            calls = list(training_calls(trainer, pl_module, networks[0], options.loss_fn, example))
            return calls, [successors(network, units, calls[0]) if calls else [] for network in networks]

    calls, found = agreed(trainer, _WHAT, look)
    for network, reference, ones in zip(networks, before, found, strict=True):
        for one in ones:
            seen = agreed(trainer, _WHAT, partial(_seen, trainer, network, reference, one, calls))
            if trainer.world_size > 1:
                seen.pool_(partial(summed, trainer))
            add_(network, trainer.strategy.broadcast(agreed(trainer, _WHAT, seen.solve)))


def _seen(trainer: Trainer, network: nn.Module, reference: nn.Module, one: str, calls: Sequence[Call]) -> Beside:
    with _quiet(trainer), beside(network, reference, one, trainer.global_rank, trainer.world_size) as seen:
        for call in calls:
            seen.run(call)
    return seen


@contextmanager
def _quiet(trainer: Trainer) -> Iterator[None]:
    with fixed_seed(), trainer.precision_plugin.val_step_context(), eager():
        yield
