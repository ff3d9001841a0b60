"""The means of what gates multiply with, collected while batches go through a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.core.gates import Factors, factors_of
from hqp_lightning.core.modes import evaluating

__all__ = ["Means", "watching"]


class Means:
    """The factors of each gate over samples."""

    def __init__(self) -> None:
        self.factors: dict[str, Factors] = {}

    def update(self, gate: str, x: Tensor, y: Tensor) -> None:
        """Add one call of a gate.

        Args:
            gate: its name.
            x: its input ``(N, C, ...)``.
            y: its output.
        """
        new = Factors.of(*factors_of(x.detach(), y.detach()))
        self.factors[gate] = self.factors[gate] + new if gate in self.factors else new

    def pool_(self, add: Callable[[Tensor], Tensor]) -> None:
        """Make it what all processes saw, given a sum over them."""
        self.factors = {n: Factors(add(f.total), add(f.count)) for n, f in self.factors.items()}

    def compute(self) -> dict[str, Tensor]:
        """The mean of each gate, float32 ``(C,)``.

        Examples:
            >>> means, x = Means(), torch.ones(2, 1, 1, 1)
            >>> means.update("gate", x, x * torch.tensor([1.0, 4.0]).view(2, 1, 1, 1))
            >>> means.compute()
            {'gate': tensor([2.5000])}
        """
        return {n: f.mean() for n, f in self.factors.items()}


@contextmanager
def watching(network: nn.Module, gates: Sequence[str]) -> Iterator[Means]:
    """Inside, the factors of ``gates`` are summed up while ``network`` runs, in eval mode."""
    means = Means()

    def hook(name: str) -> Callable[..., None]:
        def after(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Tensor) -> None:
            with torch.autocast(out.device.type, enabled=False):
                means.update(name, args[0] if args else next(iter(given.values())), out)

        return after

    handles = [network.get_submodule(n).register_forward_hook(hook(n), with_kwargs=True) for n in gates]
    try:
        with evaluating(network), torch.no_grad():
            yield means
    finally:
        for handle in handles:
            handle.remove()
