"""Which module of a network a trace was busy with when its time was over."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["busy_module", "spans"]

Spans = dict[str, tuple[int, int]]
"""Module name to the first and the last number that autograd gave to the operations inside."""


@contextmanager
def spans(network: nn.Module) -> Iterator[Spans]:
    """Inside, every forward pass notes where in autograd's numbering each module begins and ends."""
    found: Spans = {}

    def begin(name: str) -> Callable[..., None]:
        return lambda *_: found.__setitem__(name, (_number(), _number()))

    def end(name: str) -> Callable[..., None]:
        return lambda *_: found.__setitem__(name, (found[name][0], _number()))

    named = [(n, m) for n, m in network.named_modules() if n]
    handles = [m.register_forward_pre_hook(begin(n)) for n, m in named]
    handles += [m.register_forward_hook(end(n)) for n, m in named]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def busy_module(error: BaseException, network: nn.Module, seen: Spans) -> str:
    """The module that the frames of an interrupted trace speak of: the innermost one that has parts, if it has a name.

    A frame holds either a module that was running, or an operation of the graph, whose number lies inside a module.
    """
    names = {id(m): n for n, m in network.named_modules() if n}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for value in list(frame.f_locals.values()):
            name = names.get(id(value)) or names.get(id(getattr(value, "module", None)))
            name = name or _around(getattr(value, "grad_fn", None), seen)
            if name:
                above = name.rpartition(".")[0]
                return name if any(True for _ in network.get_submodule(name).children()) or not above else above
    return next(iter(dict(network.named_children())), "")


def _around(operation: Any, seen: Spans) -> str:
    number = getattr(operation, "_sequence_nr", int)()
    inside = [(last - first, n) for n, (first, last) in seen.items() if first <= number <= last]
    return min(inside)[1] if inside and number else ""


def _number() -> int:
    """The present place in autograd's numbering."""
    with torch.inference_mode(False), torch.enable_grad():  # a forward may have left them
        return int(torch.zeros(1, requires_grad=True).clone().grad_fn._sequence_nr())  # type: ignore[union-attr]
