"""BatchNorm's part of a step: its statistics follow the cut, on the run's own batches."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hqp_lightning.core.calls import Call
from hqp_lightning.loop.batches import batches
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.loop.untouched import eager, fixed_seed
from hqp_lightning.surgery import Cut, duplicated, recalibrate_batchnorm_, tracking_batchnorm

__all__ = ["carry_batchnorm_", "references"]


def references(networks: Sequence[nn.Module], options: PruningOptions) -> list[nn.Module]:
    """Copies from before a cut to compare with; none where no statistics are to follow it."""
    wanted = options.recalibrate_batches and tracking_batchnorm(networks[0])
    return [duplicated(network) for network in networks] if wanted else []


def carry_batchnorm_(
    trainer: Trainer,
    pl_module: LightningModule,
    networks: Sequence[nn.Module],
    before: Sequence[nn.Module],
    cut: Cut,
    options: PruningOptions,
    example: Call,
) -> str:
    """Correct the statistics of the live network and its averaged copies; says in words what became of them."""
    tracking, used = tracking_batchnorm(networks[0]), 0
    for network, old in zip(networks, before, strict=False):
        with fixed_seed(), trainer.precision_plugin.val_step_context(), eager():
            of, limit = (trainer, pl_module, networks[0], options.loss_fn), options.recalibrate_batches
            used = recalibrate_batchnorm_(network, old, cut.kept, batches(*of, "train", limit, like=example), tracking)
    total = sum(isinstance(m, _BatchNorm) for m in networks[0].modules())
    if not total:
        return ""
    if not tracking:
        return "left alone: frozen"
    frozen = f"; {total - len(tracking)} of {total} layers are frozen and stay" if len(tracking) < total else ""
    if used:
        return f"corrected by what the cut changed, on {used} batch{'' if used == 1 else 'es'}{frozen}"
    why = "no batch gave finite values" if options.recalibrate_batches else "recalibrate_batches=0"
    return f"left alone: {why}{frozen}"
