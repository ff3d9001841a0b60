"""The loss of a batch, per sample: the user's, or the one that fits the targets by their type, shape and values."""

from __future__ import annotations

from collections.abc import Callable
from pydoc import locate
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F

from hqp_lightning.core.structure import tensors_of
from hqp_lightning.errors import ConfigurationError

__all__ = ["UNLABELLED", "LossFn", "default_loss", "loss_named", "pair"]

UNLABELLED = 255  # the class of a pixel that nobody labelled, in the masks of VOC, Cityscapes and others
_IGNORED = -100  # torch's own

LossFn = Callable[[LightningModule, Any], Any]
"""Losses per sample ``(N,)`` or their mean; not ``Tensor``, or jsonargparse wants that annotation on the user's own."""


def loss_named(loss_fn: LossFn | str | None) -> LossFn | None:
    """A loss function as it was given, or by its dotted path, as it stands in a YAML file.

    Raises:
        ConfigurationError: the path leads to nothing that can be called, or it is something else.
    """
    found = locate(loss_fn) if isinstance(loss_fn, str) else loss_fn
    if found is not None and callable(found):
        return found
    if loss_fn is None:
        return None
    raise ConfigurationError(
        f"loss_fn={loss_fn!r} is no function: pass one, or the dotted path of one that can be imported, such as "
        "'my_package.losses.loss_fn'."
    )


def pair(batch: Any) -> tuple[Tensor, Tensor]:
    """The two tensors of an ``(x, y)`` batch.

    Raises:
        ConfigurationError: it is of another form.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(b, Tensor) for b in batch):
        return batch[0], batch[1]
    shown = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
    raise ConfigurationError(
        f"a batch is a {shown}, not a pair of tensors (x, y); pass loss_fn=lambda pl_module, batch: "
        "<per-sample losses of shape (N,)> so that batches of any form can be scored."
    )


def default_loss(logits: Any, y: Tensor) -> Tensor:
    """The loss per sample that fits ``y``, of shape ``(N,)``; means over pixels and over labels.

    | network's output | targets | loss |
    |---|---|---|
    | ``(N, C, ...)``, C ≥ 2 | integers ``(N, ...)`` below C | cross-entropy, without positions of class 255 |
    | the same | of its shape, non-negative, summing to one over C | cross-entropy with soft targets |
    | the same | of its shape, zeros and ones | binary cross-entropy of every label |
    | one: ``(N, 1, ...)`` or ``(N,)`` | zeros and ones, ``(N, ...)`` or of its shape | binary cross-entropy |
    | the same | other floats | squared error |
    | ``(N, C, ...)``, C ≥ 2 | of its shape, floats below zero or above one | squared error |

    Args:
        logits: what the network returns: a tensor, alone or the only one in a dict or a tuple.
        y: the targets.

    Raises:
        ConfigurationError: none of them fits, or the values leave it open; the message says which ``loss_fn`` to pass.

    Examples:
        >>> default_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.6931])
        >>> default_loss(torch.tensor([[0.0]]), torch.tensor([1]))
        tensor([0.6931])
        >>> default_loss(torch.tensor([[3.0]]), torch.tensor([[1.5]]))
        tensor([2.2500])
    """
    found = tensors_of(logits)
    logits = next(iter(found.values())) if len(found) == 1 else logits
    if not isinstance(logits, Tensor) or logits.dim() < 1 or not len(logits):
        raise _misfit(logits, y, "the network returns no tensor of logits (N, classes)")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # as losses are under autocast
    if logits.dim() == 1 or logits.shape[1] == 1:
        losses = _one_output(logits, y)
    elif y.shape == logits.shape:
        losses = _of_its_shape(logits, y)
    elif not y.is_floating_point() and y.shape == (len(logits), *logits.shape[2:]):
        y = y.long()
        if y.dim() > 1 and logits.shape[1] <= UNLABELLED:
            y = y.masked_fill(y == UNLABELLED, _IGNORED)
        if int(y.max()) >= logits.shape[1]:
            raise _misfit(logits, y, f"class {int(y.max())} is none of {logits.shape[1]} outputs")
        losses = F.cross_entropy(logits, y, ignore_index=_IGNORED, reduction="none")
    else:
        raise _misfit(logits, y, "no usual loss takes these shapes")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def _one_output(logits: Tensor, y: Tensor) -> Tensor:
    if y.numel() != logits.numel() or len(y) != len(logits):
        raise _misfit(logits, y, "no usual loss takes these shapes")
    targets = y.reshape(logits.shape).to(logits.dtype)
    if _binary(y):
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if not y.is_floating_point():
        raise _misfit(logits, y, f"one output and integers up to {int(y.max())} are neither classes nor yes and no")
    return (logits - targets).square()


def _of_its_shape(logits: Tensor, y: Tensor) -> Tensor:
    targets = y.to(logits.dtype)
    if bool((targets >= 0).all()) and bool(((targets.sum(1) - 1).abs() < 1e-3).all()):
        return F.cross_entropy(logits, targets, reduction="none")
    if _binary(y):
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if y.is_floating_point() and bool(((targets < 0) | (targets > 1)).any()):
        return (logits - targets).square()
    raise _misfit(logits, y, "targets between zero and one may be soft labels or a regression")


def _binary(y: Tensor) -> bool:
    return bool(((y == 0) | (y == 1)).all())


def _misfit(logits: Any, y: Tensor, why: str) -> ConfigurationError:
    given = f"{tuple(logits.shape)} {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
    call, mean = "pl_module(batch[0]), batch[1]", 'reduction="none").flatten(1).mean(1)'
    return ConfigurationError(
        f"without loss_fn the network must return logits that fit the targets, and {why}: got {given} for targets "
        f"{tuple(y.shape)} {y.dtype}. Pass loss_fn=lambda pl_module, batch: <per-sample losses (N,)>, for soft labels "
        f"F.binary_cross_entropy_with_logits({call}, {mean}, for a regression F.mse_loss({call}, {mean}."
    )
