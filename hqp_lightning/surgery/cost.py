"""MACs of a network's layers, counted in a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.core.calls import Call, as_call

__all__ = ["layer_macs"]


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
    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            handles.append(layer.register_forward_hook(_counter(name, macs)))
    try:
        with torch.no_grad():
            out = as_call(example).on(module)
    finally:
        for handle in handles:
            handle.remove()
    outputs = [out] if isinstance(out, Tensor) else [o for o in _flat(out) if isinstance(o, Tensor)]
    return macs, tuple(tuple(o.shape) for o in outputs)


def _counter(name: str, macs: dict[str, float]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def count(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        # in_channels / groups x kernel, or in_features; a reparametrized layer's weight is no parameter
        weight: Tensor = layer.weight  # type: ignore[assignment]
        per_output = weight.shape[1:].numel()
        macs[name] = macs.get(name, 0.0) + out.numel() / out.shape[0] * per_output

    return count


def _flat(value: object) -> list[object]:
    if isinstance(value, dict):
        return [v for x in value.values() for v in _flat(x)]
    if isinstance(value, (list, tuple)):
        return [v for x in value for v in _flat(x)]
    return [value]
