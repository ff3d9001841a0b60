"""Gradient checkpoints in passes of our own.

`torch.utils.checkpoint` with ``use_reentrant=True`` runs a part of the network inside of one autograd function: no
graph leads through it, ``torch.autograd.grad`` refuses it, and the tracer of ONNX takes it for an operator. The form
without re-entrance recomputes the same, with a graph, and is a plain call where there are no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint as torch_checkpoint

__all__ = ["without_reentrance"]


class _WithoutReentrance:
    """What torch calls for a reentrant checkpoint, by its name."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return torch_checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)


@contextmanager
def without_reentrance() -> Iterator[None]:
    """Inside, reentrant gradient checkpoints run as those without re-entrance: same values, same memory."""
    reentrant = torch_checkpoint.CheckpointFunction
    try:
        torch_checkpoint.CheckpointFunction = _WithoutReentrance  # type: ignore[misc, assignment]
        yield
    finally:
        torch_checkpoint.CheckpointFunction = reentrant  # type: ignore[misc]
