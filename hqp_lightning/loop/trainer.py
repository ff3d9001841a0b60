"""What the callbacks ask of a Trainer: preconditions, a metric, an extra validation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, XLAStrategy

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.loop.ranks import mean_score

__all__ = ["check_trainer", "load_validation", "loose", "monitored", "schedulers", "schedules_kept", "validate_now"]

_NEIGHBOURS_REFUSED = ("StochasticWeightAveraging", "ModelPruning")


def loose(trainer: Trainer) -> Any:
    """The trainer itself, untyped: Lightning sets ``callbacks``, ``datamodule`` and others without declaring them."""
    return trainer


def check_trainer(trainer: Trainer, owner: Callback) -> None:
    """Refuse, before anything is set up, what can't work.

    Raises:
        ConfigurationError: no validation loop, an unsupported strategy, or a callback that keeps a copy of the weights.
    """
    name = type(owner).__name__
    if getattr(trainer, "barebones", False):
        raise ConfigurationError(f"{name} judges by a metric, and Trainer(barebones=True) logs none: leave it out.")
    if not trainer.enable_validation:
        raise ConfigurationError(
            f"{name} judges the model by its validation metric, but validation is off: give fit a validation loader, "
            "define validation_step, and leave limit_val_batches above 0."
        )
    strategy = trainer.strategy
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) or isinstance(
        strategy, (DeepSpeedStrategy, XLAStrategy)
    ):
        raise ConfigurationError(
            f"{name} changes the shapes of the network's parameters, which {type(strategy).__name__} shards or "
            "replaces; use Trainer(strategy='ddp') on several devices, or devices=1."
        )
    if getattr(strategy, "_start_method", "popen") != "popen":
        raise ConfigurationError(
            f"{name} does not work with processes that are forked or spawned (ddp_spawn, ddp_fork): their "
            "weights come back to a network that was not pruned. Use strategy='ddp' in a script."
        )
    if getattr(strategy, "_ddp_comm_state", None) is not None:
        raise ConfigurationError(
            f"{name} does not work with a ddp_comm_state: it is sized by gradients whose shapes a prune changes. Leave "
            "it out; a ddp_comm_hook without a state, such as fp16_compress_hook, is fine."
        )
    refused = [c for c in loose(trainer).callbacks if {b.__name__ for b in type(c).__mro__} & set(_NEIGHBOURS_REFUSED)]
    if refused:
        raise ConfigurationError(
            f"{name} does not work beside {type(refused[0]).__name__}: it keeps a copy of the weights, or masks, "
            "that a structural prune would leave behind. Remove it, use it in a later fit, or take EMAWeightAveraging."
        )


def monitored(trainer: Trainer, monitor: str) -> float:
    """The latest value of the monitored metric, averaged over the ranks.

    Raises:
        ConfigurationError: validation did not log it, then the message lists what it logged; or it is no number.
    """
    metrics = _logged(trainer)
    if monitor not in metrics:
        raise ConfigurationError(
            f"monitor={monitor!r} was not logged by validation; it logged {sorted(metrics) or 'nothing'}. "
            "Log it in validation_step with self.log(...), on_epoch=True."
        )
    value = metrics[monitor]
    try:
        score = float("" if isinstance(value, str) else value)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigurationError(
            f"monitor={monitor!r} is one number that can be judged by; validation logged {value!r}."
        ) from None
    return mean_score(trainer, score)


def _logged(trainer: Trainer) -> dict[str, Any]:
    metrics, results = dict[str, Any](trainer.callback_metrics), trainer._results
    if trainer.sanity_checking and results is not None and len(trainer.num_sanity_val_batches) > 1:
        # Lightning shows callbacks nothing of what several loaders log in a sanity check; its names are there.
        for logged in results.values():
            metrics.update(dict.fromkeys(results._forked_name(logged, on_step=False), float("nan")))
    return metrics


def load_validation(trainer: Trainer) -> None:
    """Have the validation loaders made where ``fit`` has not come to it yet, or never does: no epoch was left."""
    with _validating(trainer) as loop:
        loop.setup_data()


def validate_now(trainer: Trainer) -> None:
    """Run the whole validation loop from within ``fit``, as Lightning itself does between training batches.

    This one is not the user's: a schedule that their hooks step by hand is put back.
    """
    with _validating(trainer) as loop, schedules_kept(trainer):
        loop.run()


@contextmanager
def _validating(trainer: Trainer) -> Iterator[Any]:
    trainer.validating = True  # the logger connector asks for the active loop
    try:
        yield trainer.fit_loop.epoch_loop.val_loop
    finally:
        trainer.training = True


def schedulers(trainer: Trainer) -> list[Any]:
    """The learning-rate schedulers of the run."""
    return [config.scheduler for config in trainer.lr_scheduler_configs]


@contextmanager
def schedules_kept(trainer: Trainer) -> Iterator[None]:
    """Inside, schedules may be stepped and what they set of the optimizers; afterwards they have not been."""
    optimizers, plans = trainer.strategy.optimizers, schedulers(trainer)
    groups = [(g, {k: v for k, v in g.items() if k != "params"}) for o in optimizers for g in o.param_groups]
    states = copy.deepcopy([s.state_dict() for s in plans])
    try:
        with warnings.catch_warnings():
            # Before the first batch no optimizer has stepped, either.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            yield
    finally:
        for plan, state in zip(plans, states, strict=True):
            plan.load_state_dict(state)
        for group, settings in groups:
            group.update(settings)
