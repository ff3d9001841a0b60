"""What a network's loss is without one of its branches, tried out.

½ *F* is how the loss begins to rise as a branch fades. A whole residual block is a long way from there: of
MobileNetV3-small on Imagenette the six blocks have ½ *F* = 0.39, 0.08, 0.05, 0.08, 0.07, 0.08, and without each of them
the loss rises by 2.80, 0.52, 0.30, 0.22, 0.58, 0.11 nats. A branch is tried by one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.core.fisher import FisherState
from hqp_lightning.core.taps import Loss
from hqp_lightning.records import Unit

__all__ = ["as_tried", "loss_rises"]

LEAST = 0.1
"""Of its Fisher value, what a branch is worth at least: one worth nothing would come again after each rollback."""


def loss_rises(module: nn.Module, branches: Sequence[Unit], loss: Loss) -> FisherState:
    """By how much the loss of one batch is higher, in nats, where a branch passes its input on.

    Args:
        module: the network, in eval mode.
        branches: modules of equal input and output shape, one or more.
        loss: runs the network on one batch and returns per-sample losses of shape ``(N,)``, or their mean.

    Returns:
        State with the sum over samples, of shape ``(1,)``, for each branch, by its key; not of squares.
    """
    sizes: list[int] = []
    without: dict[str, Tensor] = {}
    with torch.no_grad():
        for unit in branches:
            with _passing(module.get_submodule(unit.name), sizes):
                without[unit.key] = loss()
        whole = loss()
    samples = next(iter(sizes), 0)
    return FisherState({k: (_total(x, samples) - _total(whole, samples)).view(1) for k, x in without.items()}, samples)


def as_tried(scores: Mapping[str, Tensor], rises: Mapping[str, float]) -> dict[str, Tensor]:
    """Scores in which the branches stand to each other as the rises of the loss without them.

    ½ *F* is too low for all that is large, for many channels of a layer as for a branch, so that rises are brought to
    the scale on which branches compete with channels: divided by the median of rise over ½ *F*. Nothing is worth less
    than a tenth of its own *F*: that the loss falls without a branch says little, on a few hundred samples.

    Args:
        scores: Fisher values by name, of which half is a rise of the loss.
        rises: by how much the loss is higher without each, nats.

    Examples:
        >>> scores = {"branch:a": torch.tensor([2.0]), "branch:b": torch.tensor([1.0]), "conv": torch.tensor([5.0])}
        >>> as_tried(scores, {"branch:a": 3.0, "branch:b": 9.0})
        {'branch:a': tensor([0.5714]), 'branch:b': tensor([1.7143]), 'conv': tensor([5.])}
    """
    seen = {n: 2.0 * rise for n, rise in rises.items() if n in scores}
    ratios = [x / float(scores[n]) for n, x in seen.items() if math.isfinite(x) and x > 0 and scores[n] > 0]
    scale = median(ratios) if ratios else 1.0
    return {**scores, **{n: torch.full_like(scores[n], x / scale).maximum(LEAST * scores[n]) for n, x in seen.items()}}


def _total(losses: Tensor, samples: int) -> Tensor:
    return losses.double().sum() * (1 if losses.dim() else samples)


@contextmanager
def _passing(branch: nn.Module, sizes: list[int]) -> Iterator[None]:
    """Inside, ``branch`` gives back what it was given; the number of samples of each call is added to ``sizes``."""
    given: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        given.append(x.clone())  # the branch may work in place

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        sizes.append(len(given[-1]))
        return given.pop()

    handles = [
        branch.register_forward_pre_hook(before, with_kwargs=True),
        branch.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
