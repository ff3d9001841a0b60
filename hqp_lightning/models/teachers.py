"""Further teachers: trained networks beside the dense one that a pruned network follows while it heals."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqp_lightning.errors import ConfigurationError

__all__ = ["Teacher", "check_teachers", "mixed_logits"]

_TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Teacher(nn.Module):
    """A trained network that takes another one's images, and answers for that one's classes.

    Args:
        net: normalised images ``[B, 3, H, W]`` -> logits ``[B, C]``.
        image_size: side to which the images are resized (bilinear), such as the 224 at which ``net`` was trained;
            None: as they come.
        classes: which of the ``C`` outputs are the classes of the task, in its order, such as ten of ImageNet's
            thousand; None: all.
        dtype: ``"float32"``, as the Trainer computes; or ``"bfloat16"`` or ``"float16"`` for autocast: a teacher takes
            no gradient, and on processors with such instructions it takes a third of the time.

    Raises:
        ConfigurationError: an unknown type, a size or class index out of range, a class twice.

    Examples:
        >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8))
        >>> Teacher(net, image_size=16, classes=[2, 5])(torch.ones(4, 3, 8, 8)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        image_size: int | None = None,
        classes: Sequence[int] | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise ConfigurationError(f"net must be a network (torch.nn.Module), got {type(net).__name__}")
        if not isinstance(dtype, str) or dtype not in _TYPES:
            raise ConfigurationError(f"dtype must be one of {', '.join(_TYPES)}, got {dtype!r}")
        if image_size is not None and not _is_index(image_size, 1):
            raise ConfigurationError(f"image_size must be an integer of at least 1, got {image_size!r}")
        wanted = None if classes is None else list(classes) if isinstance(classes, Iterable) else []
        if wanted is not None and (not wanted or not all(map(_is_index, wanted)) or len({*wanted}) < len(wanted)):
            raise ConfigurationError(f"classes must be different indices of outputs, got {classes!r}")
        self.net, self.image_size, self.classes, self.dtype = net, image_size, wanted, dtype

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, len(classes)]``, float32."""
        if self.image_size is not None and images.shape[-2:] != (self.image_size, self.image_size):
            half = images.is_floating_point() and images.element_size() < 4  # antialias knows none of them on a CPU
            size = (self.image_size, self.image_size)
            resized = F.interpolate(images.float() if half else images, size, mode="bilinear", antialias=True)
            images = resized.to(images.dtype)
        kind = _TYPES[self.dtype]
        with nullcontext() if kind is None else torch.autocast(images.device.type, dtype=kind):
            logits = self.net(images)
        if self.classes is None:
            return logits if not isinstance(logits, Tensor) else logits.float()
        if not isinstance(logits, Tensor):
            returned = type(logits).__name__
            raise ConfigurationError(f"classes are chosen of a tensor; {type(self.net).__name__} returns a {returned}")
        if max(self.classes) >= logits.shape[1]:
            raise ConfigurationError(
                f"classes go up to {max(self.classes)}, the teacher {type(self.net).__name__} has "
                f"{logits.shape[1]} outputs"
            )
        chosen: Tensor = logits[:, self.classes].float()
        return chosen


def _is_index(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_teachers(
    teachers: nn.Module | Sequence[nn.Module], distillation: float, compiled: bool = False
) -> tuple[nn.Module, ...]:
    """Copies of the teachers, ready to be asked; one may share layers with the network that is trained.

    Raises:
        ConfigurationError: no network, or none of the loss is to come from them.
    """
    if not isinstance(compiled, bool) or (compiled and not distillation):
        raise ConfigurationError(f"compile_teachers={compiled!r} must be True or False; True needs distillation=0.9")
    one = isinstance(teachers, nn.Module) and not isinstance(teachers, nn.ModuleList)
    found: list[Any] = list(teachers) if isinstance(teachers, Iterable) and not one else [teachers]
    for teacher in found:
        if not isinstance(teacher, nn.Module):
            raise ConfigurationError(f"teachers must be networks (torch.nn.Module), got {type(teacher).__name__}")
    if found and not distillation:
        raise ConfigurationError("teachers need a part of the loss: distillation=0.9")
    return tuple(copy.deepcopy(teacher).eval().requires_grad_(False) for teacher in found)


def mixed_logits(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Logits whose softened probabilities are the mean of those of several teachers.

    ``T * log(mean_i softmax(l_i / T))``: G. Hinton et al. (arXiv 1503.02531) distil an ensemble by its arithmetic mean.

    Args:
        logits: of each teacher, ``[B, num_classes, ...]``.
        temperature: ``T``.

    Raises:
        ConfigurationError: they are not of one shape.

    Examples:
        >>> mixed_logits([torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])], 1.0).softmax(1)
        tensor([[0.5000, 0.5000]])
    """
    first = logits[0]
    for other in logits[1:]:
        if not isinstance(other, Tensor):
            raise ConfigurationError(f"a teacher answers a {type(other).__name__}; logits are asked for, a tensor")
        if other.shape != first.shape:
            classes = other.dim() != first.dim() or other.shape[1] != first.shape[1]
            raise ConfigurationError(
                f"a teacher answers {tuple(other.shape)}, the dense network {tuple(first.shape)}: "
                + ("name the outputs of its classes with Teacher(net, classes=[...])" if classes else "of another size")
            )
    if len(logits) == 1:
        return first
    soft = torch.stack([F.log_softmax(x.float() / temperature, dim=1) for x in logits])
    return temperature * (soft.logsumexp(0) - math.log(len(logits)))
