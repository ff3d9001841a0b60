"""Fisher diagonals of a network's channels and weights: one pass per batch, merged, then averaged.

Two estimators share one state (`FisherState`: sums over samples, and the number of samples):

* **gate** (default). Every channel of a coupled group gets one multiplicative gate *z* = 1, applied wherever the group
  is read. *F* = 1/*N* Σₙ (∂Lₙ/∂z)² is exact per sample and needs one backward pass per batch, because
  ∂Lₙ/∂z is the sum of *a* · ∂Lₙ/∂a over the consumers of the group and over the pixels of their input *a*
  (Theis et al., 2018, arXiv 1801.05787; for coupled channels Liu et al., 2021, arXiv 2108.00708).
* **weight**. *F* = 1/*N* Σₙ (∂Lₙ/∂w)² for every convolution and linear weight, the diagonal of the empirical Fisher
  that HQP sums over a filter (arXiv 2602.06069).

In units of the loss, ΔL ≈ ½ *F* for switching a gate off (Optimal Brain Damage).

The same pass gives the value of whole units (`hqp_lightning.records.Unit`), exact per sample: of a module *M* that *R*
would replace, *F* = 1/*N* Σₙ (Σ ∂Lₙ/∂*y* · (*M*(*x*) - *R*(*x*)))², the Fisher value of a gate on what *M* does beyond
*R*. For a residual block *R* is the identity; for a squeeze-excite gate it multiplies by the factors' mean over all
samples, which only the end of the pass knows, see `hqp_lightning.core.gates`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from hqp_lightning.core.gates import Factors, GatePass, GateSums
from hqp_lightning.core.taps import Loss, Tap, at_deviations, at_gates, at_inputs, at_outputs, run_backward
from hqp_lightning.core.weight_gradients import squared_sums
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import GATE, ChannelGroup, Unit

T = TypeVar("T", Tensor, GateSums)

__all__ = ["FisherState", "compute", "first_finite", "gate_fisher", "merge", "settled", "weight_fisher"]

_LOSS_SCALES = (2.0**12, 1.0)
"""Gradients in float16 underflow below 6e-8, so the loss is scaled up first, by a power of two, which rounds nothing;
where that overflows the pass is run again without."""


@dataclass(frozen=True)
class FisherState:
    """Sums of squared per-sample derivatives, float32 at least, and the number of samples behind them.

    Attributes:
        sums: group name to a tensor of shape ``(gates,)``, or parameter name to one of the parameter's shape.
        samples: number of samples summed.
        gates: of each unit that is a gate, by its key, what its sum is made of once the mean of its factors is known.
    """

    sums: Mapping[str, Tensor] = field(default_factory=dict)
    samples: int = 0
    gates: Mapping[str, GateSums] = field(default_factory=dict)


def merge(a: FisherState, b: FisherState) -> FisherState:
    """Sum of two states, for batches as for ranks; an empty state is neutral.

    Examples:
        >>> a = FisherState({"conv": torch.tensor([1.0, 2.0])}, 2)
        >>> merge(merge(FisherState(), a), a).sums["conv"], merge(a, a).samples
        (tensor([2., 4.]), 4)
    """
    return FisherState(_added(a.sums, b.sums), a.samples + b.samples, _added(a.gates, b.gates))


def _added(a: Mapping[str, T], b: Mapping[str, T]) -> dict[str, T]:
    return {**a, **b, **{n: a[n] + b[n] for n in a if n in b}}


def settled(state: FisherState, pool: Callable[[Tensor], Tensor] = lambda x: x) -> FisherState:
    """The state with a sum of shape ``(1,)`` for each gate, by the mean of its factors.

    Args:
        state: of all batches.
        pool: adds a tensor up over all processes; called for the factors alone, so that all take the same mean.
    """
    means = {n: Factors(pool(g.factors.total), pool(g.factors.count)).mean() for n, g in state.gates.items()}
    return FisherState({**state.sums, **{n: g.squares(means[n]) for n, g in state.gates.items()}}, state.samples)


def compute(state: FisherState) -> dict[str, Tensor]:
    """Mean over samples: the Fisher diagonal, same keys and shapes as ``state.sums``, and ``(1,)`` per gate.

    Examples:
        >>> compute(FisherState({"conv": torch.tensor([1.0, 2.0])}, 4))
        {'conv': tensor([0.2500, 0.5000])}
    """
    return {name: total / max(state.samples, 1) for name, total in settled(state).sums.items()}


def gate_fisher(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    loss: Loss,
    units: Sequence[Unit] = (),
) -> FisherState:
    """Channel-gate Fisher of one batch, exact per sample, for every group and unit in one backward pass.

    Parameters are frozen during the pass, so no weight gradient is computed; ``.grad`` is left alone. The module
    should be in eval mode: batch statistics would mix the samples.

    Args:
        module: the network that the groups name.
        groups: coupled groups of ``module``.
        loss: runs the network on one batch and returns per-sample losses of shape ``(N,)``, or their mean.
        units: modules that may go as a whole.

    Returns:
        State with one tensor of shape ``(gates,)`` per group, and of ``(1,)`` per branch, by its key; gates are apart.

    Raises:
        ConfigurationError: the loss is neither per sample nor a scalar, or a layer sees another number of samples.
    """
    readers: dict[str, list[tuple[ChannelGroup, Tensor, Tensor]]] = {}
    for group in groups:
        for c in group.consumers:
            gate = torch.tensor(c.channels) % group.gates
            readers.setdefault(c.module, []).append((group, torch.tensor(c.inputs), gate))
    return first_finite(lambda loss_scale: _gate_fisher(module, readers, units, loss, loss_scale))


def _gate_fisher(
    module: nn.Module,
    readers: Mapping[str, list[tuple[ChannelGroup, Tensor, Tensor]]],
    units: Sequence[Unit],
    loss: Loss,
    loss_scale: float,
) -> FisherState:
    derivative: dict[str, Tensor] = {}
    gates = {u.key: GatePass() for u in units if u.kind == GATE}
    wholes: dict[str, tuple[str, Tap]] = {
        u.key: (u.name, at_gates(gates[u.key].see) if u.kind == GATE else at_deviations) for u in units
    }

    def receive(name: str, activation: Tensor, grad: Tensor, scale: float) -> None:
        if name in wholes:
            whole = (activation * grad).flatten(1).sum(1, keepdim=True) * scale
            derivative[name] = derivative[name] + whole if name in derivative else whole
            return
        per_input = _per_sample_product(module.get_submodule(name), activation, grad) * scale
        for group, inputs, gates in readers[name]:
            if group.name not in derivative:
                derivative[group.name] = per_input.new_zeros(len(per_input), group.gates)
            picked = per_input.index_select(1, inputs.to(per_input.device))
            derivative[group.name].index_add_(1, gates.to(per_input.device), picked)

    samples = run_backward(module, list(readers), loss, receive, at_inputs, loss_scale, wholes)
    sums = {n: t.square().sum(0) for n, t in derivative.items()}
    return FisherState(sums, samples, {n: s for n, g in gates.items() if (s := g.sums()) is not None})


def weight_fisher(module: nn.Module, names: Sequence[str], loss: Loss) -> FisherState:
    """Diagonal of the empirical Fisher of one batch for the weights and biases of some layers, exact per sample.

    The per-sample weight gradients are formed layer by layer inside one backward pass, and squared and summed at
    once, sample by sample, so that no more than one is in memory.

    Args:
        module: the network.
        names: qualified names of ``Conv2d`` and ``Linear`` modules.
        loss: as in `gate_fisher`.

    Returns:
        State with one tensor of the parameter's shape per ``"<name>.weight"`` and ``"<name>.bias"``.

    Raises:
        ConfigurationError: as `gate_fisher`; or a layer is of another kind, or runs twice in one forward pass
            (its gradient is then the sum over the calls, which squares can't be formed from one call at a time).
    """
    return first_finite(lambda loss_scale: _weight_fisher(module, names, loss, loss_scale))


def _weight_fisher(module: nn.Module, names: Sequence[str], loss: Loss, loss_scale: float) -> FisherState:
    sums: dict[str, Tensor] = {}

    def receive(name: str, activation: Tensor, grad: Tensor, scale: float) -> None:
        if f"{name}.weight" in sums:
            raise ConfigurationError(f"layer {name!r} runs twice in one forward pass; use estimator='gate' instead.")
        for key, value in squared_sums(module.get_submodule(name), activation, grad).items():
            sums[f"{name}.{key}"] = value * scale**2

    samples = run_backward(module, names, loss, receive, at_outputs, loss_scale)
    return FisherState(sums, samples)


def first_finite(estimate: Callable[[float], FisherState]) -> FisherState:
    """What ``estimate`` gives for a loss scale, without one if that is not finite."""
    for loss_scale in _LOSS_SCALES:
        state = estimate(loss_scale)
        finite = [t.isfinite().all() for t in (*state.sums.values(), *(g.rows for g in state.gates.values()))]
        if not finite or bool(torch.stack(finite).all()):  # one question to the device
            break
    return state


def _per_sample_product(layer: nn.Module, activation: Tensor, grad: Tensor) -> Tensor:
    """Sum of ``a * dL/da`` over all but sample and channel, ``(N, C)``; a linear layer's features are last."""
    product = activation * grad  # then a sum: in channels_last fifteen times faster than einsum, which copies
    dims = tuple(range(1, grad.dim() - 1)) if isinstance(layer, nn.Linear) else tuple(range(2, grad.dim()))
    return product.sum(dims) if dims else product
