"""A teacher beside somebody's training step: its logits on the very inputs that the network got become a loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["soft_loss", "taught"]


def soft_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """``KL(softmax(teacher) || softmax(logits))``, mean over the batch (Hinton et al., arXiv 1503.02531).

    >>> float(soft_loss(torch.zeros(1, 2), torch.zeros(1, 2)))
    0.0
    """
    student, target = (F.log_softmax(x.float(), dim=1) for x in (logits, teacher))
    return F.kl_div(student, target, reduction="batchmean", log_target=True)


@contextmanager
def taught(pl_module: LightningModule, network: nn.Module, teacher: nn.Module | None) -> Iterator[None]:
    """Inside, ``training_step``'s loss has `soft_loss` added, for every call of the network that gives logits.

    A step that optimizes by itself, or does not call the network as a whole, is left as it is, and so is a loss where
    the network gives something else than ``(batch, classes)``.

    Args:
        pl_module: the module that is trained.
        network: the part of it that is quantized.
        teacher: takes what the network takes; None: nothing happens.
    """
    if teacher is None or not pl_module.automatic_optimization:
        yield
        return
    teacher.eval().requires_grad_(False)
    losses: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not network.training or not isinstance(out, Tensor) or out.ndim != 2 or out.shape[1] < 2:
            return
        with torch.no_grad():
            soft = teacher.to(out.device)(*args, **kwargs)
        losses.append(soft_loss(out, soft))

    step: Callable[..., Any] = pl_module.training_step
    own = pl_module.__dict__.get("training_step")

    @functools.wraps(step)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        losses.clear()
        result = step(*args, **kwargs)
        if result is None or not losses:
            return result
        more = torch.stack(losses).sum()
        return {**result, "loss": result["loss"] + more} if isinstance(result, dict) else result + more

    handle = network.register_forward_hook(look, with_kwargs=True)
    pl_module.__dict__["training_step"] = training_step
    try:
        yield
    finally:
        handle.remove()
        del pl_module.__dict__["training_step"]
        if own is not None:
            pl_module.__dict__["training_step"] = own
