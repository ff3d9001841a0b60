"""HQPPruning: propose, prune, judge, keep or roll back, while the user's Trainer trains."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from hqp_lightning.callbacks.fisher import FisherAccumulator, shared
from hqp_lightning.core.calls import Call
from hqp_lightning.core.verdict import check_budget
from hqp_lightning.loop.averaging import scored
from hqp_lightning.loop.checkpoint import carry_structure
from hqp_lightning.loop.losses import LossFn, loss_named
from hqp_lightning.loop.network import find_network
from hqp_lightning.loop.options import CHANNELS, COMPARED, PruningOptions, check_units
from hqp_lightning.loop.portable import Portable
from hqp_lightning.loop.trainer import check_trainer, loose, monitored, validate_now
from hqp_lightning.loop.twins import Twins
from hqp_lightning.records import Budget, StepRecord
from hqp_lightning.search.fits import begun, enter_, leave_, opened
from hqp_lightning.search.judging import doubts, weigh_
from hqp_lightning.search.operation import steps_, undo_
from hqp_lightning.search.state import PruningState
from hqp_lightning.search.telling import announce, say, say_once, show_saliency
from hqp_lightning.search.tracing import begin_, compared
from hqp_lightning.shipping.interrupted import keep_accepted

__all__ = ["HQPPruning"]


class HQPPruning(Portable):
    """Prune a network structurally in small steps, each kept only if the monitored metric stays within the budget.

    After every validation the Fisher scores rank the coupled channels; at the next epoch start the cheapest are
    removed from the live model and its optimizer, training heals what is left, and the next validation judges it:
    kept, or rolled back and tried again with half the step. ``max_epochs`` and the schedule stay the user's. When
    ``fit`` ends the model is the last accepted one (HQP, arXiv 2602.06069). A further ``fit`` with the same callback,
    or from a file saved after the first, goes on from it.

    Args:
        monitor: the metric that validation logs, for example ``"val_acc"``.
        max_drop: how much worse than the baseline it may become, a fraction in (0, 1).
        mode: ``"max"`` if larger is better, else ``"min"``.
        module: the network's attribute name in the LightningModule; found if it is the only one with parameters.
        ignore: names of modules in the network that stay as they are, and are not looked into. The head is found.
        estimator: ``"gate"`` or ``"weight"``, see `FisherAccumulator`; ``"magnitude"`` for Torch-Pruning's group
            norms of the weights and ``"isomorphic"`` for its isomorphic Taylor criterion, to compare with (their
            "predicted loss increase" is no loss).
        cost: ``"macs"`` ranks channels by loss increase per MAC, ``"none"`` by loss increase alone, ``"latency"`` per
            millisecond on this machine's engine, ``"FILE.json"`` on that of `hqp-engine profile`'s table.
        step: fraction of the dense cost, MACs or milliseconds, that a step removes at first.
        min_step: the search ends when a halved step would be below this fraction.
        every_n_epochs: epochs of healing before a step is judged.
        patience: further epochs at most in which a step over budget heals: kept once within, rolled back once hopeless.
        start_epoch: first epoch that may begin with a step; with 0 a full validation measures the baseline first.
        target_macs: stop when this fraction of the dense MACs is left.
        target_speedup: stop when the dense float network's latency is so many times the predicted one.
        target_latency_ms: stop when the predicted latency is no more; these two need a latency as ``cost``.
        max_channel_ratio: at most this fraction of a group's channels is ever removed.
        round_to: kept channels per group are a multiple of this.
        fisher_batches: validation batches used for the scores, evenly spread; all by default.
        recalibrate_batches: training batches that tell BatchNorm what a cut changed; 0 for none. Frozen layers stay.
        compensate: whether readers of removed channels take over what those did, by a regression on 256 images.
        baseline: the score that drops are measured from; by default the best of dense and accepted models.
        loss_fn: see `FisherAccumulator`; for batches that are not ``(x, y)``, or a loss that the targets do not tell.
        max_snapshots: accepted models kept in memory for `Int8Export` to walk back to.
        units: what may go: ``"channels"``, ``"gates"`` (squeeze-excite, by its mean), ``"branches"`` (residual blocks).

    Raises:
        ConfigurationError: an argument out of range; in ``setup`` or before the first training batch: a path, monitor,
            loader, strategy, callback or network that can't work.
    """

    seen = ("_module", "_twins")

    def __init__(
        self,
        monitor: str,
        max_drop: float,
        mode: str = "max",
        module: str | None = None,
        ignore: Sequence[str] = (),
        estimator: str = "gate",
        cost: str = "macs",
        step: float = 0.05,
        min_step: float = 0.0125,
        every_n_epochs: int = 1,
        patience: int = 0,
        start_epoch: int = 0,
        target_macs: float | None = None,
        target_speedup: float | None = None,
        target_latency_ms: float | None = None,
        max_channel_ratio: float = 0.9,
        round_to: int = 8,
        fisher_batches: int | None = None,
        recalibrate_batches: int = 8,
        compensate: bool = True,
        baseline: float | None = None,
        loss_fn: LossFn | str | None = None,
        max_snapshots: int = 5,
        units: Sequence[str] = (CHANNELS,),
    ) -> None:
        options = {name: value for name, value in locals().items() if name in PruningOptions.__slots__}
        self.budget, loss_fn = check_budget(Budget(max_drop, monitor, mode)), loss_named(loss_fn)
        tuples = {"ignore": tuple(ignore), "units": check_units(units, estimator)}
        self.options = PruningOptions(**{**options, **tuples, "loss_fn": loss_fn})
        by = "gate" if estimator in COMPARED else estimator
        self.own_fisher = FisherAccumulator(by, module, ignore, loss_fn, fisher_batches, units)
        self.state = opened(self.options)
        self._fisher = self.own_fisher
        self._example = Call()
        self._twins: Twins | None = None
        self._module: weakref.ref[LightningModule] | None = None
        self._told: set[str] = set()
        self.keeps = True

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """Every step so far, with its outcome and reason."""
        return tuple(self.state.records)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can't work, and make checkpoints carry the structure."""
        if stage == "fit":
            check_trainer(trainer, self)
            self._example, self._told, self.keeps = Call(), set(), True
            last = self._module() if self._module is not None else None
            self.state = begun(self.state, self.options, pl_module, last)
            self._module = weakref.ref(pl_module)
            self._fisher = shared(trainer, self, self.own_fisher, self.options.estimator, self.options.units)
            carry_structure(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a path that is not there; ``configure_model`` may have made the network only now."""
        find_network(pl_module, self.options.module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trace the network once, and measure the baseline if pruning may start at once."""
        if (line := enter_(trainer, pl_module, self.state)) is not None:
            say(trainer, line)
        self._example, self._twins = begin_(trainer, pl_module, self.state, self.options)
        due = trainer.current_epoch >= self.options.start_epoch or trainer.num_sanity_val_steps == 0
        if due and self.state.dense is None and not loose(trainer).fast_dev_run:
            validate_now(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores are only measured when a step may follow."""
        if self._fisher is self.own_fisher:
            soon = trainer.current_epoch + 1 >= self.options.start_epoch
            self.own_fisher.active = soon and self.state.search.stopped is None and not self.options.compares
            self.own_fisher.on_validation_start(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Fisher scores of the batch."""
        if self._fisher is self.own_fisher:
            self.own_fisher.on_validation_batch_end(trainer, pl_module, *args, **kwargs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the pending step, or note how good the present model is."""
        score = monitored(trainer, self.budget.monitor)
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self._fisher is self.own_fisher:
            self.own_fisher.on_validation_end(trainer, pl_module)
        state, options, model = self.state, self.options, scored(trainer, pl_module)
        network, saliency = find_network(pl_module, options.module)[1], {}
        if (record := weigh_(state, trainer, model, network, score, self.budget, options)) is not None:
            self._tell(trainer, record)
        if state.pending is None and not state.rollback_due:
            of = trainer, pl_module, state, options, self._example
            saliency = compared(*of) if options.compares else self._fisher.saliency()
            state.rank_by(saliency)
        say_once(trainer, self._told, doubts(state, score, saliency, self.budget))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Roll back what was judged too expensive, then make the next step."""
        if self.state.rollback_due:
            undo_(trainer, pl_module, self.state)
        if (twins := self._twins) is not None and not twins.undecided():
            before, of = self.state.pending, (pl_module, self.state, self.options, self._example, twins.following)
            for refused in steps_(trainer, *of):
                self._tell(trainer, refused)
            if self.state.pending is not before:
                self._fisher.take_over(self.state.rises)
                show_saliency(trainer, self.state.saliency or {})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whatever was not kept goes; the last accepted model stays."""
        unjudged = leave_(trainer, pl_module, self.state, self.budget, self.options)
        if unjudged is not None:
            self._tell(trainer, unjudged)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A checkpoint of the last epoch leaves nothing to train: then no hook of training was called."""
        if self._example == Call():
            self.on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A training that is broken off leaves its last accepted model; `Int8Export` leaves more."""
        if self.keeps:
            folder = Path(trainer.default_root_dir)
            keep_accepted(trainer, pl_module, folder, self.budget, self.state, exception)

    def state_dict(self) -> dict[str, Any]:
        """The whole search, so that a resumed run goes on as if it had not been interrupted."""
        return self.state.to_plain()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.state = PruningState.from_plain(state_dict)

    def _tell(self, trainer: Trainer, record: StepRecord) -> None:
        announce(trainer, record, self.budget, self.state.dense_macs)
