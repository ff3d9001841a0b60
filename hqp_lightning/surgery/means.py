"""The means of what gates multiply with, collected while batches go through a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.core.modes import evaluating
from hqp_lightning.surgery.units import factors_of

__all__ = ["Means", "watching"]


class Means:
    """Sums of the factors of each gate over samples, ``(C,)``, and in how many samples a channel had one."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def update(self, gate: str, x: Tensor, y: Tensor) -> None:
        """Add one call of a gate; samples that give no finite factors are left out.

        Args:
            gate: its name.
            x: its input ``(N, C, ...)``.
            y: its output.
        """
        factors, alive = factors_of(x.detach(), y.detach())
        alive = alive & factors.isfinite().all(1, keepdim=True)
        total, count = factors.where(alive, torch.zeros_like(factors)).double().sum(0), alive.double().sum(0)
        self.sums[gate] = self.sums[gate] + total if gate in self.sums else total
        self.counts[gate] = self.counts[gate] + count if gate in self.counts else count

    def pool_(self, add: Callable[[Tensor], Tensor]) -> None:
        """Make it what all processes saw, given a sum over them."""
        for gate in self.sums:
            self.sums[gate], self.counts[gate] = add(self.sums[gate]), add(self.counts[gate])

    def compute(self) -> dict[str, Tensor]:
        """The mean of each gate, float32 ``(C,)``; a channel that was zero in all samples gets that of the others.

        Examples:
            >>> means, x = Means(), torch.ones(2, 1, 1, 1)
            >>> means.update("gate", x, x * torch.tensor([1.0, 4.0]).view(2, 1, 1, 1))
            >>> means.compute()
            {'gate': tensor([2.5000])}
        """
        found = {}
        for gate, total in self.sums.items():
            count = self.counts[gate]
            others = total.sum() / count.sum() if count.any() else torch.ones_like(total).mean()
            found[gate] = torch.where(count > 0, total / count.clamp(min=1), others).float()
        return found


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
