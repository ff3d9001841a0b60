"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Inside, the networks are in eval mode; then every module has its own flag back, as frozen BatchNorm needs it.

    Examples:
        >>> net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(net):
        ...     [m.training for m in net.modules()]
        [False, False, False]
        >>> [m.training for m in net.modules()]
        [True, True, False]
    """
    modes = {m: m.training for network in networks for m in network.modules()}
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for m, training in modes.items():
            m.training = training
