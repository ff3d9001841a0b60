"""Units go from a live Trainer's networks: its batches for the gates' means, its ranks, its optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from hqp_lightning.core.calls import Call
from hqp_lightning.loop.batches import training_calls
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.loop.ranks import agreed, summed
from hqp_lightning.loop.untouched import eager, fixed_seed
from hqp_lightning.records import GATE
from hqp_lightning.surgery import Cut
from hqp_lightning.surgery.cut import drop_from_
from hqp_lightning.surgery.folding import remove_
from hqp_lightning.surgery.means import watching
from hqp_lightning.surgery.replaced import original_of

__all__ = ["remove_units_"]


def remove_units_(
    trainer: Trainer,
    pl_module: LightningModule,
    networks: Sequence[nn.Module],
    cut: Cut,
    options: PruningOptions,
    example: Call,
) -> None:
    """Put the stand-ins of ``cut``'s units into each network; their parameters leave the optimizers with their state.

    Raises:
        SurgeryError: it failed on this rank or on another; some networks may have lost units already.
    """
    if not cut.removals:
        return
    means = [_means(trainer, pl_module, networks[0], network, cut, options, example) for network in networks]
    gone: list[Tensor] = []
    instead: dict[Tensor, Tensor] = {}
    for network, factors in zip(networks, means, strict=True):
        for removal in cut.removals:
            remove_(network, removal, factors.get(removal.unit.name))
            old = list(original_of(network, removal.unit.name).parameters())
            gone += old
            instead |= zip(old, network.get_submodule(removal.unit.name).parameters(), strict=False)  # a scale has one
    alive = {id(p) for module in (pl_module, *networks) for p in module.parameters()}
    drop_from_(trainer.optimizers, [p for p in gone if id(p) not in alive], instead)


def _means(
    trainer: Trainer,
    pl_module: LightningModule,
    live: nn.Module,
    network: nn.Module,
    cut: Cut,
    options: PruningOptions,
    example: Call,
) -> dict[str, Tensor]:
    gates = [r.unit.name for r in cut.removals if r.unit.kind == GATE]
    if not gates:
        return {}

    def watch() -> None:
        with fixed_seed(), trainer.precision_plugin.val_step_context(), eager():
            for call in training_calls(trainer, pl_module, live, options.loss_fn, example):
                call.on(network)

    with watching(network, gates) as means:
        agreed(trainer, "the means of the gates", watch)
    if trainer.world_size > 1:
        means.pool_(partial(summed, trainer))
    return trainer.strategy.broadcast({n: m.cpu() for n, m in means.compute().items()})
