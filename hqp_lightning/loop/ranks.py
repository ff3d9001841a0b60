"""What the processes of a distributed run have to agree on; with one process everything is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hqp_lightning.core.fisher import FisherState, settled
from hqp_lightning.core.gates import GateSums
from hqp_lightning.errors import ExportError, LossError, SurgeryError, in_words
from hqp_lightning.surgery import restore_, take

__all__ = ["agreed", "average_batchnorm_", "first_rank_only", "mean_score", "merged", "summed"]

T = TypeVar("T")


def agreed(trainer: Trainer, what: str, work: Callable[[], T]) -> T:
    """What ``work`` gives, which every rank does by itself: a failure of one is told before the ranks meet again.

    Raises:
        SurgeryError: it failed, on this rank or on another.
        LossError: it failed by a `LossError` on another rank; on that one what caused it is raised, as it is.
    """
    found: list[T] = []
    failure = None
    try:
        found.append(work())
    except Exception as error:
        failure = error
    if trainer.strategy.reduce_boolean_decision(failure is None):
        return found[0]
    if not trainer.strategy.reduce_boolean_decision(not isinstance(failure, LossError)):
        own = failure.__cause__ if isinstance(failure, LossError) else None
        raise own or LossError(f"{what} failed: loss_fn failed on another rank, see its error")
    raise SurgeryError(f"{what} failed: {in_words(failure) if failure else 'on another rank'}") from failure


def mean_score(trainer: Trainer, score: float) -> float:
    """The mean over the ranks, so that all come to the same verdict; a synchronised metric stays what it is."""
    if trainer.world_size == 1:
        return score
    value = torch.tensor(score, dtype=torch.float64, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(value, reduce_op="mean"))


def summed(trainer: Trainer, x: Tensor) -> Tensor:
    """The sum over the ranks."""
    return trainer.strategy.reduce(x.to(trainer.strategy.root_device, copy=True), reduce_op="sum")


def merged(trainer: Trainer, measured: T, state: FisherState) -> tuple[T, FisherState]:
    """Fisher sums and samples added over the ranks; a rank that saw no batch learns from one that did what of."""
    if trainer.world_size == 1:
        return measured, state
    shapes = {n: tuple(s.shape) for n, s in state.sums.items()}
    widths = {n: len(g.factors.total) for n, g in state.gates.items()}
    told = [(measured, shapes, widths)] * trainer.world_size
    torch.distributed.all_gather_object(told, (measured, shapes, widths))
    everywhere, shapes, widths = next((t for t in told if t[1] or t[2]), told[0])
    gates = {n: state.gates.get(n, GateSums.none(width)) for n, width in widths.items()}
    state = settled(replace(state, gates=gates), partial(summed, trainer))
    shapes |= dict.fromkeys(widths, (1,))
    sums = {n: summed(trainer, state.sums.get(n, torch.zeros(shape))) for n, shape in shapes.items()}
    samples = summed(trainer, torch.tensor(state.samples))
    return everywhere, FisherState(sums, int(samples))


def average_batchnorm_(trainer: Trainer, module: nn.Module) -> None:
    """Running means and variances become their mean over the ranks, in place."""
    if trainer.world_size == 1:
        return
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            for buffer in (norm.running_mean, norm.running_var):
                buffer.copy_(trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))


@contextmanager
def first_rank_only(trainer: Trainer, pl_module: LightningModule) -> Iterator[bool]:
    """Work of one rank while the others wait, and then hold the model that it left; yields whether this is that rank.

    Raises:
        ExportError: on the ranks that waited, if the first one failed.
    """
    if trainer.world_size == 1:
        yield True
        return
    model = None
    try:
        yield trainer.is_global_zero
        model = take(pl_module) if trainer.is_global_zero else None
    finally:
        model = trainer.strategy.broadcast(model)
    if model is None:
        raise ExportError("the first rank failed, see its error; the other ranks only waited for it.")
    if not trainer.is_global_zero:
        restore_(model, pl_module)
