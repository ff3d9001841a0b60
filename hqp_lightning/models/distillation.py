"""How a pruned network follows the dense one: by its logits, and by the features that its classifier reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from hqp_lightning.errors import ConfigurationError

__all__ = ["check_layers", "check_seen", "distillation_loss", "feature_reader", "follow", "with_features"]

_POSITIONS = 4  # of a layer's output, along each side: neighbours are much alike


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T**2 * KL(softmax(teacher / T) || softmax(logits / T))``, mean over batch and pixels (arXiv 1503.02531).

    Args:
        logits: of the student, ``[B, num_classes, ...]``.
        teacher: logits of the teacher, ``[B, num_classes, ...]``.
        temperature: ``T``; the factor ``T**2`` keeps the gradient's scale.

    Examples:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> float(distillation_loss(x, x + 5, 2.0))
        0.0
    """
    student, target = (F.log_softmax(x.float() / temperature, dim=1) for x in (logits, teacher))
    pixels = logits.shape[2:].numel()
    return temperature**2 * F.kl_div(student, target, reduction="batchmean", log_target=True) / pixels


def feature_reader(net: nn.Module) -> str:
    """Name of the layer whose input the features are: the first linear one behind all convolutions.

    Raises:
        ConfigurationError: no linear layer comes after the last convolution.

    Examples:
        >>> feature_reader(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 2)))
        '2'
    """
    found = ""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            found = ""
        elif isinstance(module, nn.Linear) and not found:
            found = name
    if not found:
        raise ConfigurationError(
            "feature_distillation compares what the first linear layer behind the convolutions reads; "
            f"{type(net).__name__} has none: leave feature_distillation at 0"
        )
    return found


def check_layers(net: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """Names of modules of a network.

    Raises:
        ConfigurationError: the network has no module of that name, or it is no list of names.
    """
    if isinstance(layers, (str, bytes)) or not isinstance(layers, Collection):
        raise ConfigurationError(f"feature_layers={layers!r} must be a list of names, such as ['layer1']")
    known = [n for n, _ in net.named_modules() if n]
    for name in layers:
        if name not in known:
            near = get_close_matches(str(name), known, 3) or known[:3]
            raise ConfigurationError(
                f"feature_layers={list(layers)}: {type(net).__name__} has no module {name!r}; it has {', '.join(near)}"
            )
    return tuple(layers)


def with_features(
    net: nn.Module, run: Callable[[], Tensor], layers: Sequence[str] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """What ``run`` returns, and what was followed meanwhile.

    Args:
        net: the network.
        run: calls it.
        layers: names of modules whose outputs ``[B, C, ...]`` are followed, too; one that was pruned away is left out.

    Returns:
        The logits; and by ``""`` the features ``[B, C]`` that the classifier read, by its name the output of each
        layer as ``[B * P, C]``, its mean at no more than 4 x 4 positions.

    Raises:
        ConfigurationError: a layer returns something else, or is called more than once, or not at all.
    """
    seen: dict[str, Tensor] = {}
    handles = follow(net, seen, layers)
    try:
        logits = run()
    finally:
        for handle in handles:
            handle.remove()
    check_seen(net, seen, layers)
    return logits, seen


def follow(net: nn.Module, seen: dict[str, Tensor], layers: Sequence[str] = ()) -> list[RemovableHandle]:
    """Let every call of a network write into ``seen`` what `with_features` returns; the hooks can be removed."""
    handles = [net.get_submodule(feature_reader(net)).register_forward_pre_hook(partial(_read, seen))]
    there = dict(net.named_modules())
    return handles + [there[n].register_forward_hook(partial(_written, seen, n)) for n in layers if n in there]


def check_seen(net: nn.Module, seen: dict[str, Tensor], layers: Sequence[str] = ()) -> None:
    """Raise ConfigurationError where a layer of the network was not called."""
    there = dict(net.named_modules())
    if silent := [n for n in layers if n in there and n not in seen]:
        raise ConfigurationError(f"feature_layers: {silent} are not called by the network")


def _read(seen: dict[str, Tensor], _: nn.Module, args: tuple[Any, ...]) -> None:
    seen[""] = args[0].flatten(1)


def _written(seen: dict[str, Tensor], name: str, _: nn.Module, __: Any, out: Any) -> None:
    if name in seen:  # which call stands for which is unknown once one of them is pruned away
        raise ConfigurationError(f"feature_layers: {name!r} is called more than once; name a module that is not")
    if not isinstance(out, Tensor) or out.dim() not in (2, 4):
        raise ConfigurationError(f"feature_layers: {name!r} returns no tensor [B, C] or [B, C, H, W]")
    if out.dim() == 4:
        height, width = (min(_POSITIONS, side) for side in out.shape[2:])
        out = F.adaptive_avg_pool2d(out, (height, width)).permute(0, 2, 3, 1).flatten(0, 2)
    seen[name] = out
