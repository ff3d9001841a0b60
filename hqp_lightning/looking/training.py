"""How much training an epoch of the user's is, as far as it can be known before one begins, and if there was any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from hqp_lightning.loop.losses import UNLABELLED
from hqp_lightning.loop.untouched import fixed_seed

__all__ = ["classes_of", "healing_batches", "untrained"]

_GUESS = 0.95  # of the loss of a guess by frequency; a network that has learnt anything is far below


def classes_of(batch: Any) -> Tensor | None:
    """The targets of an ``(x, y)`` batch, where they are classes of samples or of pixels."""
    y = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dim() not in (1, 3):
        return None
    return y.detach().cpu().long()


def untrained(metrics: Mapping[str, float], targets: Sequence[Tensor], usual: bool = True) -> str:
    """A sentence, where validation found the network no better than one that has not seen its input; else nothing.

    Its accuracy is at most two standard errors above the share of the commonest class; or, where none was logged, the
    loss is that of a guess by the classes' frequencies.

    Args:
        metrics: what validation logged.
        targets: classes of the samples, ``(N,)`` or ``(N, H, W)``, of all batches; empty: they are no classes.
        usual: the loss is a cross-entropy.
    """
    samples = sum(len(y) for y in targets)
    labelled = [y[(y >= 0) & (y != UNLABELLED)] if y.dim() > 1 else y for y in targets]
    counts = torch.cat(labelled).unique(return_counts=True)[1].double() if labelled else torch.zeros(0)
    if len(counts) < 2:
        return ""
    shares = counts / counts.sum()
    common, entropy = float(shares.max()), float(-(shares * shares.log()).sum())
    bound = common + 2 * math.sqrt(common * (1 - common) / samples)
    scores = {n: v for n, v in metrics.items() if "acc" in n.lower() and 0 <= v <= 1}
    losses = {n: v for n, v in metrics.items() if "loss" in n.lower()} if usual and not scores else {}
    if scores and max(scores.values()) <= bound:
        name = max(scores, key=lambda n: scores[n])
        said = f"{name} {scores[name]:.3f} is about what naming the commonest class gives, {common:.3f}"
    elif losses and min(losses.values()) >= _GUESS * entropy:
        name = min(losses, key=lambda n: losses[n])
        said = f"{name} {losses[name]:.2f} is hardly below that of a guess by the classes' frequencies, {entropy:.2f}"
    else:
        return ""
    return f"{said}: the network looks untrained. Train it first: prices and settings are of the weights as they are."


def healing_batches(owner: Any, trainer: Trainer) -> int | None:
    """Batches of a training epoch; None where the loader or its length is not known.

    Args:
        owner: the datamodule or module that has the training loader.
        trainer: its limit of training batches counts.
    """
    try:
        with fixed_seed():
            batches = len(owner.train_dataloader())
    except Exception:  # whatever user code raises where training was not set up, or there is no loader
        return None
    limit = trainer.limit_train_batches
    if isinstance(limit, int) and not isinstance(limit, bool):
        return min(batches, limit)
    return batches if limit is None else max(int(batches * limit), 1)
