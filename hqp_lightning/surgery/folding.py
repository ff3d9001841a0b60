"""Take units out of a network: a branch becomes the identity, a gate the mean of what it multiplied with.

A gate's mean goes into the weights of a neighbour where nothing nonlinear stands between: the convolution that reads
it, or the convolution or BatchNorm that writes what it scales. Where there is none, one scale per channel stays. Which
neighbour it may be is tried on data, and proved (`hqp_lightning.surgery.proof`), with factors of both signs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hqp_lightning.core.calls import Call
from hqp_lightning.records import BRANCH, GATE, Unit
from hqp_lightning.surgery.halving import failing
from hqp_lightning.surgery.proof import Proof
from hqp_lightning.surgery.replaced import replace_
from hqp_lightning.surgery.slicing import IN, OUT

__all__ = ["Removal", "plan", "proved", "remove_"]

_READERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WRITERS = (*_READERS, _BatchNorm)


@dataclass(frozen=True, slots=True)
class Removal:
    """How a unit goes.

    Attributes:
        unit: which.
        layer: name of the layer whose weights take a gate's factors; empty if they stay as a scale.
        side: of that layer, ``"in"`` or ``"out"``.
        channels: of a gate; 0 for a branch.
    """

    unit: Unit
    layer: str = ""
    side: str = ""
    channels: int = 0


def plan(proof: Proof, units: Sequence[Unit]) -> tuple[Removal, ...]:
    """How each of ``units`` can go; those that can't are not among the result."""
    found, channels = _neighbours(proof.network, proof.calls[0], [u.name for u in units if u.kind == GATE])
    chosen = {u.name: Removal(u, channels=channels.get(u.name, 0)) for u in units}
    for side in (IN, OUT):
        open_ = {n: r for n, r in chosen.items() if not r.layer and (n, side) in found}
        folds = {n: replace(r, layer=found[n, side], side=side) for n, r in open_.items()}
        wrong = failing(list(folds), _proving(proof, folds))
        chosen |= {n: r for n, r in folds.items() if n not in wrong}
    out = failing(list(chosen), _proving(proof, chosen))
    return tuple(r for n, r in chosen.items() if n not in out)


def proved(proof: Proof, removals: Sequence[Removal]) -> str:
    """Why the network without these units is not the one with them replaced where they are; empty if it is."""
    inner = [r for r in removals if not any(o.unit.holds(r.unit.name) for o in removals)]
    factors = _factors(inner, next(proof.network.parameters()).dtype)

    def change_(network: nn.Module) -> None:
        for r in inner:
            remove_(network, r, factors.get(r.unit.name))

    by: dict[str, Callable[[Tensor], Tensor]] = {r.unit.name: torch.clone for r in inner if r.unit.kind == BRANCH}
    by |= {n: lambda x, f=f: x * f[:, None, None] for n, f in factors.items()}  # type: ignore[misc]
    return proof.replaces(change_, by)


def remove_(network: nn.Module, removal: Removal, factors: Tensor | None = None) -> None:
    """Put its stand-in in the place of a unit.

    Args:
        network: in whose weights it may be folded.
        removal: how it goes.
        factors: of a gate, ``(C,)``; without them all are one.
    """
    if factors is None and removal.unit.kind == GATE:
        factors = torch.ones(removal.channels)
    if factors is None:
        replace_(network, removal.unit.name)
        return
    if not removal.layer:
        replace_(network, removal.unit.name, factors)
        return
    replace_(network, removal.unit.name)
    layer = network.get_submodule(removal.layer)
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    with torch.no_grad():
        factors = factors.to(weight.device)
        if removal.side == IN:
            scale = factors.view(int(layer.groups), -1)  # type: ignore[arg-type]
            scale = scale.repeat_interleave(len(weight) // len(scale), 0)
        else:
            scale = factors
        weight.copy_(weight * scale.view(*scale.shape, *[1] * (weight.dim() - scale.dim())))
        if removal.side == OUT and bias is not None:
            bias.copy_(bias * factors)


def _proving(proof: Proof, removals: Mapping[str, Removal]) -> Callable[[Sequence[str]], str]:
    return lambda names: proved(proof, [removals[n] for n in names])


def _neighbours(
    network: nn.Module, call: Call, gates: Sequence[str]
) -> tuple[dict[tuple[str, str], str], dict[str, int]]:
    """The layer that reads a gate's output (side ``IN``), and the one that wrote its input, as the same tensor.

    And the gates' numbers of channels.
    """
    channels: dict[str, int] = {}
    wrote: dict[int, str] = {}
    left: dict[int, str] = {}
    calls: dict[str, int] = {}
    alive: list[Any] = []  # an identity is a tensor's as long as it lives
    pairs: list[tuple[str, str, str]] = []

    def hook(name: str) -> Callable[..., None]:
        def after(m: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            x = args[0] if args else None
            alive.extend((x, out))
            if isinstance(m, _READERS) and id(x) in left:
                pairs.append((left[id(x)], IN, name))
            if name in gates:
                if id(x) in wrote:
                    pairs.append((name, OUT, wrote[id(x)]))
                left[id(out)], channels[name] = name, out.shape[1]
            elif not list(m.children()):
                wrote.pop(id(out), None)
                if isinstance(m, _WRITERS) and m._parameters.get("weight") is not None:
                    wrote[id(out)] = name

        return after

    handles = [m.register_forward_hook(hook(n)) for n, m in network.named_modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call.map(torch.clone).on(network)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[tuple[str, str], list[str]] = {}
    for gate, side, layer in pairs:
        found.setdefault((gate, side), []).append(layer)
    return {k: layers[0] for k, layers in found.items() if len(layers) == calls[layers[0]] == 1}, channels


def _factors(removals: Sequence[Removal], dtype: torch.dtype) -> dict[str, Tensor]:
    """Factors of gates to try with, of both signs."""
    found: dict[str, Tensor] = {}
    for r in removals:
        if r.unit.kind == GATE:
            generator = torch.Generator().manual_seed(len(found))
            found[r.unit.name] = torch.empty(r.channels, dtype=dtype).uniform_(0.5, 1.5, generator=generator)
            found[r.unit.name][1::2] *= -1
    return found
