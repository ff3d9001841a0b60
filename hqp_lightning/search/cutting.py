"""One cut of all that lives: the network, its averaged copies and twins, the optimizers, on every rank."""

from __future__ import annotations

import time
from collections.abc import Collection

from lightning.pytorch import LightningModule, Trainer

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import SurgeryError, in_words
from hqp_lightning.loop.averaging import copies
from hqp_lightning.loop.network import find_network
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.loop.ranks import average_batchnorm_
from hqp_lightning.search.batchnorm import carry_batchnorm_, references
from hqp_lightning.search.compensating import compensations
from hqp_lightning.search.removing import remove_units_
from hqp_lightning.search.succeeding import succeed_
from hqp_lightning.surgery import Cut, apply_cut_, duplicated, slice_optimizers_
from hqp_lightning.surgery.compensation import add_

__all__ = ["cut_"]


def cut_(
    trainer: Trainer,
    pl_module: LightningModule,
    cut: Cut,
    options: PruningOptions,
    example: Call,
    twins: Collection[str],
) -> tuple[float, str]:
    """Apply a cut, let the readers take over, and carry BatchNorm's statistics along.

    Returns when the cut was done, and what became of BatchNorm.

    Raises:
        SurgeryError: it failed on this rank or on another, on all of them; what was done is not taken back.
    """
    failure, finished, batchnorm = None, 0.0, ""
    # Averaged copies lose the same channels; their old BatchNorm statistics would fit as little as the network's.
    modules = (pl_module, *copies(trainer))
    networks = [find_network(m, options.module)[1] for m in modules] + [
        m.get_submodule(n)
        for m in modules
        for n in sorted(twins)  # one order on all ranks: sets have none
    ]
    try:
        before = references(networks, options)
        whole = before or [duplicated(n) for n in networks] if options.compensate and cut.removals else []
        remove_units_(trainer, pl_module, networks, cut, options, example)
        if whole:
            succeed_(trainer, pl_module, networks, whole, cut, options, example)
        gained = compensations(trainer, pl_module, networks, cut, options, example)  # they still read all
        for network, gain in zip(networks, gained, strict=True):
            apply_cut_(network, cut)
            add_(network, gain)
            slice_optimizers_(trainer.optimizers, network, cut)
        finished = time.perf_counter()
        batchnorm = carry_batchnorm_(trainer, pl_module, networks, before, cut, options, example)
    except Exception as error:
        failure = error
    if not trainer.strategy.reduce_boolean_decision(failure is None):
        why = in_words(failure) if failure else "on another rank"
        raise SurgeryError(f"the surgery failed and was taken back: {why}") from failure
    for network in networks:
        average_batchnorm_(trainer, network)
    return finished, batchnorm
