"""Let layers of a live network compute as their INT8 form does, and still be trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hqp_lightning.core.calibration import LEAST_SCALE, Range

__all__ = ["fake_quantized"]

_WEIGHTS = 127  # symmetric int8: -127 ... 127


@contextmanager
def fake_quantized(network: nn.Module, ranges: Mapping[str, Range]) -> Iterator[dict[Range, nn.Parameter]]:
    """Inside, the inputs and weights of some layers are rounded to the INT8 grid, and gradients pass straight through.

    Inputs: ``(clamp(round(x / scale) + zero_point, smallest, largest) - zero_point) · scale``, between the division by
    the range's factors, its shifts taken off, and their way back; its gradient is one
    inside the range and zero where it clips (the straight-through estimator; Jacob et al., arXiv 1712.05877). Weights:
    symmetric, for each output channel with ``scale = max |w| / 127`` of the weights as they are at that call. BatchNorm
    behind a layer scales whole output channels, which moves weights and scale alike: folding it first would round to
    the same integers; those of depthwise kernels are as in `hqp_lightning.core.rounding`, and what rounding adds to an
    output on average, by the means of the range, comes off. BatchNorm runs on its stored statistics inside, as the INT8
    file does; its scale and shift are trained on.

    The steps of the inputs may be learned, too (LSQ; Esser et al., ICLR 2020, arXiv 1902.08153): the gradient of a step
    *s* is that of ``clamp(round(x / s)) · s`` with the rounding passed straight through, times 1 / √(N · Q), N values a
    sample and Q the largest integer, so that steps move about as far as weights. Steps that no optimizer holds stay.

    Parameters keep their identity and their names, so that optimizers and checkpoints see nothing of it. The training
    flags are as before afterwards.

    Args:
        network: holds the layers.
        ranges: layer name in ``network`` to the range of its input. Layers have a parameter ``weight`` with the output
            channels first, and take one tensor; those whose weight is computed from others stay as they are.

    Yields:
        A step for each range, shared by the layers that have an equal one.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> with torch.no_grad(), fake_quantized(nn.Sequential(layer), {"0": Range.symmetric(63.5)}):
    ...     _ = layer.weight.copy_(torch.tensor([[1.0, 2.0 / 127]]))
    ...     layer(torch.tensor([[0.6, 100.0]])).item()  # 0.5 · 1 + 63.5 · 2/127
    1.5
    """
    layers = {network.get_submodule(name): given for name, given in ranges.items()}
    layers = {m: given for m, given in layers.items() if m._parameters.get("weight") is not None}
    hidden = {layer: layer.__dict__.get("forward") for layer in layers}
    norms = {m: m.training for m in network.modules() if isinstance(m, _BatchNorm)}
    steps = {given: nn.Parameter(torch.tensor(given.scale)) for given in ranges.values()}
    try:
        for norm in norms:
            norm.eval()
        for layer, given in layers.items():
            layer.__dict__["forward"] = partial(_forward, layer, layer.forward, given, steps[given])
        yield steps
    finally:
        for layer, forward in hidden.items():
            del layer.__dict__["forward"]
            if forward is not None:
                layer.__dict__["forward"] = forward
        for norm, training in norms.items():
            norm.training = training


def _forward(
    layer: nn.Module, forward: Callable[..., Any], given: Range, step: Tensor, x: Tensor, *args: Any, **kwargs: Any
) -> Any:
    factors, shifts = (_of_channels(v, x) for v in (given.factors or (1.0,), given.shifts or (0.0,)))
    even = _rounded((x.float() - shifts) / factors, step.to(x.device), given)
    quantized = (even * factors + shifts).to(x.dtype)
    parameters, weight = layer._parameters, layer.get_parameter("weight")
    on_grid = _on_grid(weight)
    # Not a property or a parametrization of the class: the parameter has to stay what the optimizer holds.
    layer.__dict__["_parameters"] = {**parameters, "weight": on_grid}
    try:
        made = forward(quantized, *args, **kwargs)
    finally:
        layer.__dict__["_parameters"] = parameters
    return made - _drift(on_grid.detach() - weight.detach(), given.means, made) if given.means else made


def _drift(error: Tensor, means: tuple[float, ...], made: Tensor) -> Tensor:
    """`mean_drift`, as a bias of what was made."""
    each = error.float().flatten(2).sum(2) if error.ndim > 2 else error.float()
    groups = len(means) // each.shape[1]
    of_inputs = torch.tensor(means, device=error.device).reshape(groups, -1, 1)
    drift = (each.reshape(groups, -1, each.shape[1]) @ of_inputs).reshape(1, -1, *[1] * (made.ndim - 2))
    return drift.to(made.dtype)


def _rounded(x: Tensor, step: Tensor, given: Range) -> Tensor:
    smallest, largest = given.integers
    scale = 1 / math.sqrt(max(x.numel() // len(x), 1) * largest)
    step = step.abs().clamp_min(LEAST_SCALE)
    step = step * scale + (step - step * scale).detach()  # its value, and a part of its gradient
    inside = (x / step).clamp(smallest - given.zero_point, largest - given.zero_point)
    return (inside + (inside.round() - inside).detach()) * step


def _of_channels(values: tuple[float, ...], x: Tensor) -> Tensor:
    found = torch.tensor(values, device=x.device)
    return found.reshape(1, -1, *[1] * (x.ndim - 2)) if len(values) > 1 else found[0]


def _on_grid(weight: Tensor) -> Tensor:
    """The gradient passes straight through, since no weight is beyond its channel's grid."""
    with torch.no_grad():
        top = weight.float().flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.ndim - 1))
        step = torch.where(top > 0, top, 1.0) / _WEIGHTS
        on_grid = _integers(weight.float() / step) * step
    return weight + (on_grid.to(weight.dtype) - weight).detach()


def _integers(steps: Tensor) -> Tensor:
    """`hqp_lightning.core.rounding.rounded`, where the network is."""
    near = steps.round().clamp(-_WEIGHTS, _WEIGHTS)
    if steps.ndim < 3 or steps.shape[1] > 1:
        return near
    flat = near.flatten(1)
    error = flat - steps.flatten(1)
    total = error.sum(1, keepdim=True)
    side = total.sign()
    fits = (error.sign() == side) & ((flat - side).abs() <= _WEIGHTS)
    rank = torch.where(fits, -error.abs(), 1.0).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    moved = fits & (rank < total.abs().round())
    return (flat - moved * side).reshape(near.shape)
