"""Layers that no gradient reaches, where the outside graph, which follows autograd's, sees nothing.

Some of them begin what leads nowhere: a head for the training, whose output the forward throws away in eval mode. What
such a dead end reads can be cut all the same, if it is cut along: for the graph its layers' outputs are outputs, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WHY", "dead_ends", "outputs_of", "severed"]

WHY = (
    "no gradient leads to it from the outputs, so that nothing tells what reads its channels, nor what they are worth: "
    "the forward runs it under torch.no_grad, inference_mode or set_grad_enabled(self.training), detaches what it "
    "gives, or makes nothing of it"
)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def severed(
    network: nn.Module, run: Callable[[nn.Module], Sequence[Tensor]], ignore: Sequence[str] = ()
) -> list[tuple[str, int, Tensor]]:
    """Layers that run, but from whose weights no path of autograd leads to the outputs: name, width and output.

    Args:
        network: all parameters with gradients.
        run: gives its outputs.
        ignore: names of modules in which nobody looks.
    """
    own = {
        n: m
        for n, m in network.named_modules()
        if isinstance(m, _LAYERS)
        and m._parameters.get("weight") is not None
        and not any(f"{n}.".startswith(f"{other}.") for other in ignore)
    }
    with outputs_of(network, own) as called, torch.random.fork_rng(devices=[]):
        reached = _reached(run(network))
    return [(n, len(own[n].weight), out) for n, out in called.items() if id(own[n].weight) not in reached]


def dead_ends(network: nn.Module, found: Sequence[tuple[str, int, Tensor]]) -> tuple[str, ...]:
    """Those of severed layers that a gradient can begin at, and that mix what they read: their inputs may be cut."""
    graphs = (n for n, _, out in found if out.grad_fn is not None)
    return tuple(n for n in graphs if getattr(network.get_submodule(n), "groups", 1) == 1)


@contextmanager
def outputs_of(network: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, what layers with these names gave last, in the order in which they were first called."""
    given: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, __, out: given.__setitem__(name, out)

    handles = [network.get_submodule(n).register_forward_hook(note(n)) for n in names]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()


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
