"""One forward and backward pass with taps: the activations and gradients of chosen layers, as the backward runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hqp_lightning.core.recomputing import without_reentrance
from hqp_lightning.errors import ConfigurationError

__all__ = [
    "NO_GRADIENT",
    "Loss",
    "Receiver",
    "Tap",
    "at_deviations",
    "at_gates",
    "at_inputs",
    "at_outputs",
    "run_backward",
]

NO_GRADIENT = (
    "the loss of the Fisher scores has no gradient: loss_fn, or the network's forward, computes it under torch.no_grad "
    "or inference_mode, or detaches it. Let it compute gradients; they are only taken where they are asked for."
)
Loss = Callable[[], Tensor]
"""Runs the network on a batch and returns its losses, see `run_backward`."""
Receiver = Callable[[str, Tensor, Tensor, float], None]
"""Called with a layer's name, its input, the gradient there, and the factor that makes the gradient per sample."""


class Taps:
    """What the hooks of one pass share: where the backward ends, and how many samples each layer saw."""

    def __init__(self, receive: Receiver) -> None:
        self.receive, self.leaves, self.sizes, self.scale = receive, list[Tensor](), dict[str, int](), 1.0

    def leaf(self, x: Tensor) -> Tensor:
        """``x`` with gradients, the end of the backward if nothing before it has any."""
        if not x.requires_grad:
            x = x.detach().requires_grad_(True)
            self.leaves.append(x)
        return x

    def listen(self, name: str, value: Tensor, activation: Tensor, receive: Receiver | None = None) -> None:
        """Hand over the gradient of ``value``, in float32 at least: squares underflow in half precision."""
        self.sizes[name] = len(activation)
        activation, receive = activation.detach(), receive or self.receive

        def hook(grad: Tensor) -> None:
            # Without autocast, or products would be rounded to half precision again.
            with torch.autocast(grad.device.type, enabled=False):
                receive(name, _wide(activation), _wide(grad.detach()), self.scale)

        value.register_hook(hook)


Tap = Callable[[nn.Module, str, Taps], RemovableHandle]
"""Hooks a layer, to listen under a name."""


def at_inputs(layer: nn.Module, name: str, taps: Taps) -> RemovableHandle:
    """Tap the gradient at the layer's input."""

    def before(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = taps.leaf(_input(args, given))
        # An alias per reader: the gradient of a tensor that is read twice would be that of both readers.
        alias = x.view_as(x)
        taps.listen(name, alias, alias)
        return ((alias, *args[1:]), given) if args else ((), {**given, next(iter(given)): alias})

    return layer.register_forward_pre_hook(before, with_kwargs=True)


def at_outputs(layer: nn.Module, name: str, taps: Taps) -> RemovableHandle:
    """Tap the gradient at the layer's output; the backward goes no further down than the outputs tapped."""

    def after(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Tensor) -> Tensor:
        if not out.requires_grad:
            out = taps.leaf(out).clone()  # the next layer may work in place, which a leaf does not permit
        taps.listen(name, out, _input(args, given))
        return out

    return layer.register_forward_hook(after, with_kwargs=True)


def at_deviations(layer: nn.Module, name: str, taps: Taps) -> RemovableHandle:
    """Tap the gradient at a module's output; its activation is what the output has beyond the input."""

    def after(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Tensor) -> Tensor:
        if not out.requires_grad:
            out = taps.leaf(out).clone()
        with torch.no_grad():  # now: what comes next may work in place
            deviation = out - _input(args, given)
        taps.listen(name, out, deviation)
        return out

    return layer.register_forward_hook(after, with_kwargs=True)


def at_gates(see: Callable[[Tensor, Tensor], Receiver]) -> Tap:
    """Tap the gradient at the output of a gate, its activation the gate's input.

    Args:
        see: called with input and output as soon as they exist; gives who receives the gradient of that call.
    """

    def tap(layer: nn.Module, name: str, taps: Taps) -> RemovableHandle:
        def after(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Tensor) -> Tensor:
            if not out.requires_grad:
                out = taps.leaf(out).clone()
            with torch.no_grad(), torch.autocast(out.device.type, enabled=False):
                x = _input(args, given).clone()  # what comes next may work in place
                receive = see(x, out)
            taps.listen(name, out, x, receive)
            return out

        return layer.register_forward_hook(after, with_kwargs=True)

    return tap


def run_backward(
    module: nn.Module,
    names: Sequence[str],
    loss: Loss,
    receive: Receiver,
    tap: Tap,
    loss_scale: float = 1.0,
    more: Mapping[str, tuple[str, Tap]] | None = None,
) -> int:
    """Run ``loss`` and its backward with ``module``'s parameters frozen; ``.grad`` is left alone.

    Args:
        module: the network.
        names: qualified names of the layers to tap.
        loss: runs the network, returns per-sample losses ``(N,)`` or their mean.
        receive: gets every tapped gradient as soon as it exists.
        tap: `at_inputs` or `at_outputs`, for ``names``.
        loss_scale: the backward starts from the loss times this; the factor that ``receive`` gets takes it out again.
        more: what else is tapped: the name that ``receive`` is given, to a module's name and how.

    Returns:
        The number of samples N.

    Raises:
        ConfigurationError: the loss is neither per sample nor a scalar, or a layer sees another number of samples.
    """
    taps = Taps(receive)
    handles = [tap(module.get_submodule(name), name, taps) for name in names]
    handles += [other(module.get_submodule(name), key, taps) for key, (name, other) in (more or {}).items()]
    with _frozen(module), without_reentrance():
        try:
            value = loss()
            samples = _samples(taps, value)
            if taps.leaves and not value.requires_grad:
                raise ConfigurationError(NO_GRADIENT)
            taps.scale = (samples if value.dim() == 0 else 1) / loss_scale
            if taps.leaves:
                torch.autograd.grad(_wide(value).sum() * loss_scale, taps.leaves, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
    return samples


def _samples(taps: Taps, value: Tensor) -> int:
    if value.dim() > 1:
        raise ConfigurationError(
            f"the loss has shape {tuple(value.shape)}: return per-sample losses (N,) or their mean."
        )
    samples = len(value) if value.dim() else next(iter(taps.sizes.values()), 0)
    odd = {name: size for name, size in taps.sizes.items() if size != samples}
    if odd:
        name, size = next(iter(odd.items()))
        raise ConfigurationError(
            f"layer {name!r} sees {size} samples, but the loss is of {samples}: the Fisher estimate needs the batch as "
            "the first dimension everywhere. Return per-sample losses (N,) or their mean, or ignore the layer."
        )
    return samples


def _input(args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(given.values()))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    trainable = [p for p in module.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
