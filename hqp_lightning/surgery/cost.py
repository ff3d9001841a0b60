"""MACs, calls and widths of a network's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.core.calls import Call, as_call

__all__ = ["called_layers", "layer_macs", "layer_widths", "per_channel"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def layer_macs(
    module: nn.Module, example: Call | Sequence[Any]
) -> tuple[dict[str, float], tuple[tuple[int, ...], ...]]:
    """Multiply-accumulates per convolution and linear layer for one sample, and the shapes of the outputs.

    Biases, normalisation and activations are not counted, as in torchvision's published figures ("GFLOPS").

    Args:
        module: the network, in eval mode.
        example: a call of it, or its inputs by place, with a leading batch axis.

    Returns:
        Layer name to MACs; and the output shape(s).

    Examples:
        >>> layer_macs(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), [torch.zeros(1, 3, 4, 4)])[0]
        {'0': 3456.0}
    """
    macs: dict[str, float] = {}

    def count(name: str, layer: nn.Module, out: Tensor) -> None:
        # in_channels / groups x kernel, or in_features; a reparametrized layer's weight is no parameter
        weight: Tensor = layer.weight  # type: ignore[assignment]
        macs[name] = macs.get(name, 0.0) + out.numel() / out.shape[0] * weight.shape[1:].numel()

    out = _seen(module, example, count)
    outputs = [out] if isinstance(out, Tensor) else [o for o in _flat(out) if isinstance(o, Tensor)]
    return macs, tuple(tuple(o.shape) for o in outputs)


def called_layers(module: nn.Module, example: Call | Sequence[Any]) -> tuple[str, ...]:
    """Names of convolutions and linear layers in the order of their calls, those of several calls several times.

    Args:
        module: the network, in eval mode.
        example: as for `layer_macs`.
    """
    names: list[str] = []
    _seen(module, example, lambda name, *_: names.append(name))
    return tuple(names)


def layer_widths(module: nn.Module, layers: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Input and output channels of those of the named layers that the network still has."""
    known = set(layers)
    return {n: _channels(m) for n, m in module.named_modules() if n in known and isinstance(m, _LAYERS)}


def per_channel(module: nn.Module, layers: Iterable[str]) -> dict[str, bool]:
    """Whether the work of a layer grows with its outputs alone, as a grouped convolution's does."""
    return {n: int(getattr(module.get_submodule(n), "groups", 1)) > 1 for n in layers}


def _channels(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _seen(module: nn.Module, example: Call | Sequence[Any], look: Callable[[str, nn.Module, Tensor], None]) -> Any:
    """Run the network, and show each layer with its output; returns what the network returns."""

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, _, out: look(name, layer, out)

    handles = [m.register_forward_hook(hook(n)) for n, m in module.named_modules() if isinstance(m, _LAYERS)]
    try:
        with torch.no_grad():
            return as_call(example).on(module)
    finally:
        for handle in handles:
            handle.remove()


def _flat(value: object) -> list[object]:
    if isinstance(value, dict):
        return [v for x in value.values() for v in _flat(x)]
    if isinstance(value, (list, tuple)):
        return [v for x in value for v in _flat(x)]
    return [value]
