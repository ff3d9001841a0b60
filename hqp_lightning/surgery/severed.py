"""Layers that no gradient reaches, where the outside graph, which follows autograd's, sees nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WHY", "severed"]

WHY = (
    "no gradient leads to it from the outputs, so that nothing tells what reads its channels, nor what they are worth: "
    "the forward runs it under torch.no_grad, inference_mode or set_grad_enabled(self.training), detaches what it "
    "gives, or makes nothing of it"
)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def severed(
    network: nn.Module, run: Callable[[nn.Module], Sequence[Tensor]], ignore: Sequence[str] = ()
) -> list[tuple[str, int]]:
    """Layers that run, but from whose weights no path of autograd leads to the outputs: name and output channels.

    Args:
        network: all parameters with gradients.
        run: gives its outputs.
        ignore: names of modules in which nobody looks.
    """
    called: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda m, *_: called.__setitem__(name, len(m.weight))

    own = {
        n: m
        for n, m in network.named_modules()
        if isinstance(m, _LAYERS)
        and m._parameters.get("weight") is not None
        and not any(f"{n}.".startswith(f"{other}.") for other in ignore)
    }
    handles = [m.register_forward_hook(note(n)) for n, m in own.items()]
    try:
        with torch.random.fork_rng(devices=[]):
            reached = _reached(run(network))
    finally:
        for handle in handles:
            handle.remove()
    return [(n, width) for n, width in called.items() if id(own[n].weight) not in reached]


def _reached(outputs: Sequence[Tensor]) -> set[int]:
    """Identities of the parameters that outputs depend on."""
    found: set[int] = set()
    known: set[Any] = {None}
    stack: list[Any] = [o.grad_fn for o in outputs]
    while stack:
        node = stack.pop()
        if node in known:
            continue
        known.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        stack += [following for following, _ in node.next_functions]
    return found
