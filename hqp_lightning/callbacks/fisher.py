"""FisherAccumulator: Fisher diagonals during validation passes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from hqp_lightning.core import fisher
from hqp_lightning.core.branches import as_tried, loss_rises
from hqp_lightning.core.saliency import ESTIMATORS, saliency
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.loop.calls import Receiver
from hqp_lightning.loop.losses import LossFn, loss_named
from hqp_lightning.loop.network import find_network, fisher_context, per_sample_loss
from hqp_lightning.loop.options import CHANNELS, check_units
from hqp_lightning.loop.portable import Portable
from hqp_lightning.loop.ranks import merged
from hqp_lightning.loop.scores import Scored, look
from hqp_lightning.loop.spreading import evenly
from hqp_lightning.loop.trainer import loose
from hqp_lightning.records import BRANCH, ChannelGroup, Unit
from hqp_lightning.surgery import Shadow

__all__ = ["FisherAccumulator", "shared"]


class FisherAccumulator(Portable):
    """Accumulate the Fisher diagonal of every coupled channel group while Lightning validates.

    Works in ``trainer.fit`` and ``trainer.validate``, adds one forward and backward pass per batch, and leaves
    gradients, BatchNorm statistics and logged metrics alone. Useful alone, to see what a network is sensitive to:

        fisher = FisherAccumulator()
        Trainer(callbacks=[fisher]).validate(model, datamodule)
        fisher.saliency()  # {"layer1.0.conv1": tensor of shape (64,), ...}

    Args:
        estimator: ``"gate"`` (group-joint channel gates) or ``"weight"`` (the paper's sum over filter weights).
        module: the network's attribute name in the LightningModule; found if it is the only one with parameters.
        ignore: names of modules in the network that stay as they are.
        loss_fn: ``loss_fn(pl_module, batch)`` returning per-sample losses ``(N,)`` or their mean; by default, for
            ``(x, y)`` batches, the loss that fits the targets (`hqp_lightning.loop.losses.default_loss`). From YAML:
            the dotted path of a function.
        batches: number of batches used of each validation run, all by default: evenly spread, as folders of images
            come one class after another; the first ones where nobody knows how many there are.
        units: of what: ``"channels"``, and ``"gates"`` and ``"branches"`` that go as a whole, see `HQPPruning`.

    Raises:
        ConfigurationError: unknown estimator or units, or ``batches`` below 1.
    """

    seen = ("_receiver",)

    def __init__(
        self,
        estimator: str = "gate",
        module: str | None = None,
        ignore: Sequence[str] = (),
        loss_fn: LossFn | str | None = None,
        batches: int | None = None,
        units: Sequence[str] = (CHANNELS,),
    ) -> None:
        if estimator not in ESTIMATORS:
            raise ConfigurationError(f"estimator={estimator!r} is not known; choose one of {ESTIMATORS}.")
        if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 1):
            raise ConfigurationError(f"batches={batches!r} must be an integer of at least 1, or None for all.")
        kinds = check_units(units, estimator)
        self.estimator, self.module, self.ignore = estimator, module, tuple(ignore)
        self.loss_fn, self.batches, self.kinds = loss_named(loss_fn), batches, kinds
        self.active, self.tries, self._trying = True, False, False
        self.scored, self.state, self.rises = Scored(), fisher.FisherState(), fisher.FisherState()
        self._receiver: Receiver | None = None
        self._chosen = self._batches_of(math.inf)

    def _batches_of(self, count: float) -> Collection[int] | None:
        """The numbers of the batches that are used; None for all."""
        return None if self.batches is None else evenly(count, self.batches)

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The coupled groups that were measured."""
        return self.scored.groups

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units that were."""
        return self.scored.units

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from nothing: the network may have changed since the last validation."""
        self._receiver, self._trying = None, self.tries or trainer.state.fn == "validate"
        if not trainer.sanity_checking:
            self.scored, self.state, self.rises = Scored(), fisher.FisherState(), fisher.FisherState()
            self._chosen = self._batches_of(next(iter(trainer.num_val_batches), 0))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add one batch of the first validation loader."""
        chosen = self._chosen is None or batch_idx in self._chosen
        if self.active and not trainer.sanity_checking and dataloader_idx == 0 and chosen:
            self.update(trainer, pl_module, batch, batch_idx)

    def update(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int = 0) -> None:
        """Add the Fisher sums of one batch to the state."""
        _, network = find_network(pl_module, self.module)
        with fisher_context(trainer):
            batch = apply_to_collection(
                batch, Tensor, torch.clone
            )  # tensors made in inference mode can't take part in autograd
            call = None
            if not self.groups or self.loss_fn is None:
                call = self._received(trainer, pl_module, network).call(batch, batch_idx)
            if call is not None and not self.groups:
                self.scored = look(Shadow(network, call, self.ignore), self.kinds)

            def loss() -> Tensor:
                return per_sample_loss(pl_module, network, batch, self.loss_fn, call)

            new = self.scored.fisher(network, self.estimator, loss)
            if self._trying and batch_idx % 2 == 0:
                branches = [u for u in self.units if u.kind == BRANCH]
                self.rises = fisher.merge(self.rises, loss_rises(network, branches, loss))
        self.state = fisher.merge(self.state, new)

    def _received(self, trainer: Trainer, pl_module: LightningModule, network: nn.Module) -> Receiver:
        if self._receiver is None:
            self._receiver = Receiver(trainer, pl_module, network, self.loss_fn)
        return self._receiver

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up the ranks."""
        self._receiver = None  # it holds the trainer
        self.scored, self.state = merged(trainer, self.scored, self.state)
        if self._trying:
            _, self.rises = merged(trainer, (), self.rises)

    def compute(self) -> dict[str, Tensor]:
        """Mean Fisher values: by group name (gate) or parameter name (weight)."""
        return fisher.compute(self.state)

    def saliency(self) -> dict[str, Tensor]:
        """One value per gate of every group, and per unit, on the CPU; empty before the first validation.

        Half of each is a predicted rise of the loss, nats. Branches are ranked by what the loss rises without each,
        where that was tried: in ``trainer.validate``, and beside `HQPPruning` from the step on that was chosen by it.
        """
        if not self.state.samples:
            return {}
        rises = {key: float(rise) for key, rise in fisher.compute(self.rises).items()}
        return as_tried(saliency(self.compute(), self.groups, self.estimator, self.units), rises)

    def take_over(self, rises: Mapping[str, float]) -> None:
        """What a search has tried, so that `saliency` gives what it ranked by."""
        self.rises = fisher.FisherState({key: torch.tensor([rise]) for key, rise in rises.items()}, 1)


def shared(
    trainer: Trainer, pruning: Callback, own: FisherAccumulator, estimator: str, units: Sequence[str] = ()
) -> FisherAccumulator:
    """The trainer's accumulator, so that one pass serves both; without one, ``own``.

    Raises:
        ConfigurationError: it measures something else than ``pruning`` asks for, or comes after it on several devices.
    """
    callbacks = loose(trainer).callbacks
    given = next((c for c in callbacks if isinstance(c, FisherAccumulator)), None)
    if given is None:
        return own
    if estimator in ESTIMATORS and given.estimator != estimator:
        raise ConfigurationError(
            f"{type(pruning).__name__}(estimator={estimator!r}) would rank by the scores of the trainer's "
            f"FisherAccumulator(estimator={given.estimator!r}): give both the same, or leave the FisherAccumulator out."
        )
    if missing := [u for u in units if u not in given.kinds]:
        raise ConfigurationError(
            f"{type(pruning).__name__}(units={list(units)}) needs the values of {missing}, which the trainer's "
            f"FisherAccumulator(units={list(given.kinds)}) does not measure: give both the same, or leave it out."
        )
    if trainer.world_size > 1 and callbacks.index(given) > callbacks.index(pruning):
        raise ConfigurationError(
            f"FisherAccumulator must come before {type(pruning).__name__} in Trainer(callbacks=[...]): it adds up the "
            "ranks when a validation ends, and the step is chosen right after."
        )
    return given
