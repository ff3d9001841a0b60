r"""Fisher diagonals of a network's channels and weights: one pass per batch, merged, then averaged.

Two estimators share one state (:class:`FisherState`: sums over samples, and the number of samples):

* **gate** (default). Every channel of a coupled group gets one multiplicative gate :math:`z = 1`, applied wherever
  the group is read. :math:`F_z = \frac1N\sum_n (\partial L_n/\partial z)^2` is exact per sample and needs one
  backward pass per batch, because :math:`\partial L_n/\partial z = \sum_{consumers}\sum_{hw} a\,\partial L_n/\partial a`
  (Theis et al., 2018, arXiv 1801.05787; for coupled channels Liu et al., 2021, arXiv 2108.00708).
* **weight**. :math:`F_w = \frac1N\sum_n (\partial L_n/\partial w)^2` for every convolution and linear weight, the
  diagonal of the empirical Fisher that HQP sums over a filter (arXiv 2602.06069).

In units of the loss, :math:`\Delta L \approx \tfrac12 F` for switching a gate off (Optimal Brain Damage).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hqp_lightning.records import ChannelGroup

__all__ = ["FisherState", "compute", "gate_fisher", "merge", "weight_fisher"]

Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class FisherState:
    """Sums of squared per-sample derivatives, float32, and the number of samples behind them.

    Attributes:
        sums: group name to a tensor of shape ``(gates,)``, or parameter name to one of the parameter's shape.
        samples: number of samples summed.
    """

    sums: Mapping[str, Tensor] = field(default_factory=dict)
    samples: int = 0


def merge(a: FisherState, b: FisherState) -> FisherState:
    """Sum of two states, for batches as for ranks; an empty state is neutral.

    >>> a = FisherState({"conv": torch.tensor([1.0, 2.0])}, 2)
    >>> merge(merge(FisherState(), a), a).sums["conv"], merge(a, a).samples
    (tensor([2., 4.]), 4)
    """
    names = dict.fromkeys([*a.sums, *b.sums])
    sums = {n: a.sums[n] + b.sums[n] if n in a.sums and n in b.sums else a.sums.get(n, b.sums.get(n)) for n in names}
    return FisherState({n: s for n, s in sums.items() if s is not None}, a.samples + b.samples)


def compute(state: FisherState) -> dict[str, Tensor]:
    """Mean over samples: the Fisher diagonal, same keys and shapes as ``state.sums``.

    >>> compute(FisherState({"conv": torch.tensor([1.0, 2.0])}, 4))
    {'conv': tensor([0.2500, 0.5000])}
    """
    return {name: total / max(state.samples, 1) for name, total in state.sums.items()}


def gate_fisher(module: nn.Module, groups: Sequence[ChannelGroup], loss: Loss) -> FisherState:
    """Channel-gate Fisher of one batch, exact per sample, for every group in one backward pass.

    Parameters are frozen during the pass, so no weight gradient is computed; ``.grad`` is left alone. The module
    should be in eval mode: batch statistics would mix the samples.

    Args:
        module: the network that the groups name.
        groups: coupled groups of ``module``.
        loss: runs the network on one batch and returns per-sample losses of shape ``(N,)``, or their mean.

    Returns:
        State with one tensor of shape ``(gates,)`` per group.
    """
    readers: dict[str, list[tuple[ChannelGroup, Tensor, Tensor]]] = {}
    for group in groups:
        for c in group.consumers:
            gate = torch.tensor(c.channels) % group.gates
            readers.setdefault(c.module, []).append((group, torch.tensor(c.inputs), gate))
    derivative: dict[str, Tensor] = {}

    def receive(name: str, activation: Tensor, grad: Tensor) -> None:
        per_input = _per_sample_product(module.get_submodule(name), activation, grad)
        for group, inputs, gates in readers[name]:
            total = derivative.get(group.name)
            if total is None:
                total = per_input.new_zeros(len(per_input), group.gates)
            picked = per_input.index_select(1, inputs.to(per_input.device))
            derivative[group.name] = total.index_add(1, gates.to(per_input.device), picked)

    samples = _backward(module, list(readers), loss, receive)
    return FisherState({n: t.square().sum(0) for n, t in derivative.items()}, samples)


def weight_fisher(module: nn.Module, names: Sequence[str], loss: Loss) -> FisherState:
    """Diagonal of the empirical Fisher of one batch for the weights and biases of some layers, exact per sample.

    The per-sample weight gradients are formed layer by layer inside one backward pass, and squared and summed at
    once, so that no more than one layer's are in memory.

    Args:
        module: the network.
        names: qualified names of ``Conv2d`` and ``Linear`` modules.
        loss: as in :func:`gate_fisher`.

    Returns:
        State with one tensor of the parameter's shape per ``"<name>.weight"`` and ``"<name>.bias"``.
    """
    sums: dict[str, Tensor] = {}

    def receive(name: str, activation: Tensor, grad: Tensor) -> None:
        layer = module.get_submodule(name)
        for key, value in _layer_squares(layer, activation.float(), grad.float()).items():
            full = f"{name}.{key}"
            sums[full] = sums[full] + value if full in sums else value

    samples = _backward(module, names, loss, receive, at_output=True)
    return FisherState(sums, samples)


def _backward(
    module: nn.Module,
    names: Sequence[str],
    loss: Loss,
    receive: Callable[[str, Tensor, Tensor], None],
    *,
    at_output: bool = False,
) -> int:
    """Run ``loss`` and its backward; hand each named layer's input with the gradient at its input, or output."""
    leaves: list[Tensor] = []
    sizes: list[int] = []
    scale = [1.0]

    def tap(name: str, value: Tensor, kept: Tensor) -> None:
        value.register_hook(lambda grad: receive(name, kept, grad.detach().float() * scale[0]))

    def before(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *rest = args
            sizes.append(len(x))
            if not x.requires_grad:
                x = x.detach().requires_grad_(True)
                leaves.append(x)
            # An alias per reader: a tensor read twice would hand each reader the gradient of both.
            alias = x.view_as(x)
            if not at_output:
                tap(name, alias, alias.detach())
            return (alias, *rest)

        return hook

    def after(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, args, out: tap(name, out, args[0].detach())

    with _frozen(module):
        handles = []
        for name in names:
            layer = module.get_submodule(name)
            handles.append(layer.register_forward_pre_hook(before(name)))
            if at_output:
                handles.append(layer.register_forward_hook(after(name)))
        try:
            value = loss()
            if value.dim() == 0:
                scale[0] = float(sizes[0]) if sizes else 1.0
            if leaves:
                torch.autograd.grad(value.float().sum(), leaves, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
    return sizes[0] if sizes else 0


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


def _per_sample_product(layer: nn.Module, activation: Tensor, grad: Tensor) -> Tensor:
    """Sum of ``a * dL/da`` over all but sample and channel, ``(N, C)``, float32; a linear layer's features are last."""
    if grad.dim() == 2:
        return activation.float() * grad
    if isinstance(layer, nn.Linear):
        return torch.einsum("nlc,nlc->nc", activation.float().flatten(1, -2), grad.flatten(1, -2))
    return torch.einsum("ncl,ncl->nc", activation.float().flatten(2), grad.flatten(2))


def _layer_squares(layer: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Sums over samples of squared weight and bias gradients of one layer."""
    if isinstance(layer, nn.Conv2d):
        weight = torch.zeros_like(layer.weight, dtype=torch.float32)
        if isinstance(layer.padding, str):
            raise TypeError(f"the weight estimator needs numeric padding, got padding={layer.padding!r}")
        for n in range(len(x)):
            one = torch.nn.grad.conv2d_weight(
                x[n : n + 1],
                layer.weight.shape,
                grad[n : n + 1],
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
            )
            weight += one.square()
        bias = grad.sum((2, 3)).square().sum(0)
    elif grad.dim() == 2:
        weight, bias = grad.square().t() @ x.square(), grad.square().sum(0)
    else:
        x, grad = x.flatten(1, -2), grad.flatten(1, -2)
        weight = torch.einsum("nlo,nli->noi", grad, x).square().sum(0)
        bias = grad.sum(1).square().sum(0)
    return {"weight": weight, "bias": bias} if layer.bias is not None else {"weight": weight}
