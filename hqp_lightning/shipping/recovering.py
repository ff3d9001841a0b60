"""A short quantization-aware training of an accepted model, by the user's own loop, after ``fit`` has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from hqp_lightning.core.calibration import Range
from hqp_lightning.core.verdict import score_drop
from hqp_lightning.loop.untouched import eager
from hqp_lightning.records import Budget
from hqp_lightning.shipping.scoring import lent, with_hooks
from hqp_lightning.shipping.second import second_trainer
from hqp_lightning.shipping.teaching import taught
from hqp_lightning.surgery import fake_quantized

__all__ = ["costs_too_much", "recover_"]

_SEED = 0
_SHARE = 1 / 3


def costs_too_much(budget: Budget, score: float, int8_score: float) -> bool:
    """Whether quantization alone uses up more than a third of the budget."""
    return score_drop(score, int8_score, budget.mode) > _SHARE * budget.max_drop


def recover_(
    trainer: Trainer,
    pl_module: LightningModule,
    network: nn.Module,
    ranges: Mapping[str, Range],
    epochs: int,
    lr_scale: float,
    teacher: nn.Module | None = None,
) -> None:
    """Train the model on for some epochs while layers compute as in INT8, in place; the steps of the ranges learn, too.

    A second Trainer runs the user's ``training_step`` over the run's training batches, with the optimizers of
    ``configure_optimizers``, and nothing of the first one's callbacks, loggers and checkpoints; there is no validation.
    The rate falls linearly from ``lr_scale`` times the highest one that the optimizer was configured with to zero;
    schedulers are left out, since theirs begin with the whole of it. The steps of the ranges join the first optimizer,
    without weight decay; where the module optimizes by itself, they stay.

    Args:
        trainer: the trainer of the run, on one device; its data, precision, clipping, accumulation and limit are used.
        pl_module: the model; attached to ``trainer`` again afterwards.
        network: the part of it that is quantized.
        ranges: layer name in ``network`` to the range of its input.
        epochs: how many.
        lr_scale: see above.
        teacher: a float network whose logits are a part of the loss, see `taught`.
    """
    with (
        lent(pl_module, _SEED),
        eager(),
        torch.inference_mode(False),
        torch.enable_grad(),
        taught(pl_module, network, teacher),
        fake_quantized(network, ranges) as steps,
    ):
        second = second_trainer(
            trainer,
            max_epochs=epochs,
            precision=trainer.precision,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            limit_train_batches=trainer.limit_train_batches,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_progress_bar=trainer.progress_bar_callback is not None,
            callbacks=[_FallingRate(lr_scale, list(steps.values()))],
        )
        own = pl_module.__dict__.pop("configure_callbacks", None)
        pl_module.__dict__["configure_callbacks"] = list  # the user's may bring this very export
        try:
            second.fit(pl_module, **with_hooks(trainer, "train_dataloader", trainer.train_dataloader))
        finally:
            del pl_module.__dict__["configure_callbacks"]
            if own is not None:
                pl_module.__dict__["configure_callbacks"] = own


class _FallingRate(Callback):
    def __init__(self, scale: float, learned: list[nn.Parameter]) -> None:
        self.scale, self.learned = scale, learned
        self.highest: list[list[float]] = []
        self.steps = 1.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was configured, before a warm-up or a cycle lowered it, and take the schedulers away."""
        if self.learned and pl_module.automatic_optimization:
            _join_(trainer.optimizers[0], self.learned)
        self.steps = float(trainer.estimated_stepping_batches)
        self.highest = [[_highest(g) for g in o.param_groups] for o in trainer.optimizers]
        if pl_module.automatic_optimization:
            trainer.lr_scheduler_configs.clear()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rate."""
        done = min(1.0, trainer.global_step / self.steps)
        for optimizer, rates in zip(trainer.optimizers, self.highest, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = self.scale * rate * (1 - done)


def _join_(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """A group as the first one is, for parameters that no decay may pull to zero."""
    like = {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "param_names")}
    named = "param_names" in optimizer.param_groups[0]
    params = [(f"range{k}", p) for k, p in enumerate(parameters)] if named else parameters
    optimizer.add_param_group({**like, "params": params, "weight_decay": 0.0})


def _highest(group: Mapping[str, Any]) -> float:
    """Schedulers leave the configured rate in the group: OneCycleLR its peak, the others what they start from."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))
