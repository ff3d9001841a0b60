"""``look``: one validation pass, and what pruning and INT8 would cost."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from hqp_lightning.board.files import check_writable
from hqp_lightning.callbacks import FisherAccumulator, HQPPruning
from hqp_lightning.core.calls import Call
from hqp_lightning.core.latency import Price, Widths
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.looking.advice import advice
from hqp_lightning.looking.noise import int8_noise
from hqp_lightning.looking.prices import kept, parts
from hqp_lightning.looking.quiet import check_parts, validated
from hqp_lightning.looking.training import classes_of, healing_batches, untrained
from hqp_lightning.loop.calls import Receiver
from hqp_lightning.loop.network import find_network
from hqp_lightning.loop.options import CHANNELS, PruningOptions
from hqp_lightning.loop.pricing import priced
from hqp_lightning.loop.trainer import loose
from hqp_lightning.records import UNIT_KINDS, GroupNote, Look, LookPoint
from hqp_lightning.report import versions
from hqp_lightning.report.looks import print_look, write_look
from hqp_lightning.search.fits import opened
from hqp_lightning.search.proposal import untried
from hqp_lightning.search.saving import Wanted
from hqp_lightning.surgery import Cut, Shadow

__all__ = ["LEVELS", "look"]

LEVELS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Fractions of the dense MACs, or milliseconds, that are removed in one shot."""

_CALIBRATION = 128  # samples that set the ranges of INT8


def look(
    trainer: Trainer,
    module: LightningModule,
    datamodule: Any = None,
    dirpath: str | os.PathLike[str] = "look",
    samples: int = 512,
) -> Look:
    """What would pruning cost this model, and INT8? Told before any training, from one validation pass.

    Weights, modes, hooks, random states and the Trainer's callbacks are as before. What it knows is printed and written
    as ``look.html``, ``look.json`` and ``look.png``. An `HQPPruning` among the Trainer's callbacks, or
    those of the module's ``configure_callbacks``, says which network, what to ignore, the loss and the limits of a cut;
    otherwise its defaults do.

        look(Trainer(), MyModule.load_from_checkpoint("best.ckpt"), MyData())

    Args:
        trainer: on one device, not at work; its callbacks and loggers are not called.
        module: holds the trained network.
        datamodule: a LightningDataModule, a validation loader, or None where the module has one itself.
        dirpath: folder for the three files; created.
        samples: validation samples that are used, evenly spread over the first loader.

    Returns:
        The figures.

    Raises:
        ConfigurationError: there is no validation loader, no usual loss, nothing to prune, or an unwritable folder.
    """
    check_parts(trainer, module, datamodule)
    if samples < 1:
        raise ConfigurationError(f"samples={samples} must be at least 1.")
    check_writable(Path(dirpath) / "look.json")
    pruning = _pruning(trainer, module)
    options = replace(
        pruning.options if pruning else HQPPruning("none", 0.5).options,
        estimator="gate",
        cost="macs",
        target_speedup=None,
        target_latency_ms=None,
        units=(CHANNELS, *UNIT_KINDS),
    )
    watcher = _Watcher(options)
    available = validated(trainer, module, datamodule, watcher, samples)
    if watcher.example is None:
        raise ConfigurationError("the validation loader is empty, so there is nothing to look at.")
    with torch.no_grad():
        found = _figures(trainer, module, watcher, options, pruning.options if pruning else options)
    batches = healing_batches(datamodule if isinstance(datamodule, LightningDataModule) else module, trainer)
    told = advice(found, pruning.budget if pruning else None, available, batches)
    doubt = untrained(watcher.metrics, watcher.targets, options.loss_fn is None)
    found = replace(found, advice=told, remarks=(*([doubt] if doubt else []), *found.remarks))
    write_look(found, Path(dirpath))
    print_look(found, Path(dirpath))
    return found


def _pruning(trainer: Trainer, module: LightningModule) -> HQPPruning | None:
    """The user's; Lightning prefers callbacks that the module brings to the Trainer's of the same kind."""
    own = module.configure_callbacks()
    given = [*(own if isinstance(own, Sequence) else [own]), *loose(trainer).callbacks]
    return next((c for c in given if isinstance(c, HQPPruning)), None)


class _Watcher(Callback):
    """Fisher sums of every batch, its targets, and what the network receives of the first."""

    def __init__(self, options: PruningOptions) -> None:
        self.options = options
        self.fisher = FisherAccumulator("gate", options.module, options.ignore, options.loss_fn, None, options.units)
        self.fisher.tries = True  # every second batch tells what the loss is without each branch
        self.example: Call | None = None
        self.calibration: list[Call] = []
        self.targets: list[Tensor] = []
        self.metrics: dict[str, float] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.fisher.on_validation_start(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, loader: int = 0
    ) -> None:
        if loader != 0:
            return
        if (classes := classes_of(batch)) is not None:
            self.targets.append(classes)
        if self.fisher.state.samples < _CALIBRATION:
            with torch.inference_mode(False), torch.no_grad():
                own = apply_to_collection(batch, Tensor, torch.clone)
                _, network = find_network(pl_module, self.options.module)
                call = Receiver(trainer, pl_module, network, self.options.loss_fn).call(own, batch_idx)
            self.calibration.append(call.map(lambda x: x.detach().cpu()))
            self.example = self.calibration[0].map(lambda x: x[:2] if x.dim() else x)
        self.fisher.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.fisher.on_validation_end(trainer, pl_module)
        found = {n: float(v) for n, v in trainer.callback_metrics.items() if not isinstance(v, str)}
        self.metrics = {n: v for n, v in found.items() if math.isfinite(v)}


def _figures(
    trainer: Trainer, module: LightningModule, watcher: _Watcher, options: PruningOptions, asked: PruningOptions
) -> Look:
    _, network = find_network(module, options.module)
    assert watcher.example is not None
    shadow, saliency = Shadow(network, watcher.example, options.ignore), watcher.fisher.saliency()
    if not shadow.groups():
        left = "".join(f" {n.group}: {n.reason}." for n in shadow.notes[:3])
        raise ConfigurationError(
            f"{type(network).__name__} has nothing to prune: every convolution and linear layer is a head, ignored "
            f"({list(options.ignore) or 'none'}), or can't be cut.{left}"
        )
    price = priced(trainer, network, watcher.example, shadow, asked) if asked.by_latency else None
    alone, failed = _points(shadow, saliency, replace(options, units=(CHANNELS,)), price)
    both, more = _points(shadow, saliency, options, price) if shadow.units() else ((), ())
    rows, total, problem = int8_noise(network, watcher.calibration)
    return Look(
        network=type(network).__name__,
        samples=watcher.fisher.state.samples,
        metrics=watcher.metrics,
        macs=shadow.macs,
        params=shadow.params,
        channels=alone,
        with_units=both,
        parts=parts(shadow, network, saliency),
        kept=kept(shadow, network, saliency, options, (*failed, *more)),
        advice=(),
        quantization=rows,
        int8_noise=total,
        latency_ms=None if price is None else price.dense_ms,
        remarks=(problem,) if problem else (),
        versions=versions(),
    )


def _points(
    shadow: Shadow, saliency: dict[str, Tensor], options: PruningOptions, price: Price | None
) -> tuple[tuple[LookPoint, ...], tuple[GroupNote, ...]]:
    """What the first step of a search would do, for one size after the other, and what it found that can't go.

    Sizes are fractions of the dense MACs, and with a price of the dense milliseconds, as the search's steps are.
    """
    state = opened(options)
    state.price = price
    state.saliency, state.channels = saliency, {g.name: g.channels for g in shadow.groups()}
    points: list[LookPoint] = []
    for level in LEVELS:
        wanted = Wanted(level * shadow.macs) if price is None else Wanted(math.inf, level * price.dense_ms)
        step = untried(shadow, wanted, state, options, saliency, {})
        if not step.parts:
            break
        cut = shadow.without(step.units).cut(step.removed)
        removed = 1 - cut.macs / shadow.macs
        ms = None if price is None else price.ms(_widths(cut, price))
        point = LookPoint(removed, step.predicted_loss_increase, cut.macs, cut.params, step.channels, step.units, ms)
        if point not in points:  # a tile may be larger than a level, or all that may go is gone
            points.append(point)
    return tuple(points), tuple(state.notes)


def _widths(cut: Cut, price: Price) -> Widths:
    """The layers that are left, with their input and output channels."""
    known, sides = cut.structure.attributes, (("in_features", "out_features"), ("in_channels", "out_channels"))
    left = {n: known[n] for n in price.layers() if n in known}
    return {n: tuple(float(cast(int, a[s])) for pair in sides for s in pair if s in a) for n, a in left.items()}
