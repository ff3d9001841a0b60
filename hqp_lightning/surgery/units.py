"""Units of a network, found by what modules do to data, whatever their class is called.

A *gate* gives back its input times one factor for each channel and sample: output over input is constant over
positions, also where the module is given other maps. A *branch* gives back its input plus a correction: with all of
its parameters zero it is the identity on what it receives (a residual block, also where a ReLU follows the sum).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.core.calls import Call
from hqp_lightning.core.gates import factors_of
from hqp_lightning.records import BRANCH, GATE, Unit
from hqp_lightning.surgery.copying import deep_copy
from hqp_lightning.surgery.proof import Proof
from hqp_lightning.surgery.replaced import Identity

__all__ = ["find"]

_MAP = (7, 5)
"""Height and width of the maps that a gate is tried with: at one position everything is constant."""


@dataclass(frozen=True)
class _Pass:
    """What went through a module that was called once, with one tensor."""

    given: Tensor
    returned: Tensor


def find(proof: Proof, macs: Mapping[str, float], ignore: Sequence[str] = ()) -> tuple[Unit, ...]:
    """The units of a network, in its order; of modules inside each other that do the same, the innermost.

    Args:
        proof: has a copy of the network, in which nothing is the identity only because it starts as one.
        macs: layer name to MACs; a unit saves some.
        ignore: names of modules that stay, with all that holds them or lies inside.
    """
    network, closed = proof.network, [f"{n}." for n in ignore]
    cost = {
        name: sum(m for layer, m in macs.items() if layer.startswith(f"{name}."))
        for name, module in network.named_modules()
        if name and not isinstance(module, Identity)
    }
    tried = [
        n for n, m in cost.items() if m and not any(f"{n}.".startswith(c) or c.startswith(f"{n}.") for c in closed)
    ]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        passes = _passes(network, proof.calls[0], tried)
        kinds = {n: k for n, p in passes.items() if (k := _kind(network.get_submodule(n), p, proof.tolerance))}
    return tuple(
        Unit(n, kind, cost[n])
        for n, kind in kinds.items()
        if not any(other.startswith(f"{n}.") and k == kind for other, k in kinds.items())
    )


def _passes(network: nn.Module, call: Call, names: Sequence[str]) -> dict[str, _Pass]:
    seen: dict[str, list[_Pass | None]] = {n: [] for n in names}

    def before(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            one = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].is_floating_point()
            seen[name].append(_Pass(args[0].clone(), args[0]) if one and args[0].dim() > 1 else None)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            started = seen[name][-1]
            like = started is not None and isinstance(out, Tensor) and out.shape == started.given.shape
            whole = like and started is not None and torch.equal(started.given, started.returned)  # not worked in place
            seen[name][-1] = _Pass(started.given, out.clone()) if started is not None and whole else None

        return hook

    with _hooked(network, names, before, after):
        call.map(torch.clone).on(network)
    return {n: p[0] for n, p in seen.items() if len(p) == 1 and p[0] is not None}


def _kind(module: nn.Module, seen: _Pass, tolerance: float) -> str:
    try:
        if seen.given.dim() == 4 and _is_gate(module, seen, tolerance):
            return GATE
        return BRANCH if _is_branch(module, seen, tolerance) else ""
    except Exception:  # a module that does not take other maps, or zeros: whatever user code raises
        return ""


def _is_gate(module: nn.Module, seen: _Pass, tolerance: float) -> bool:
    if not _constant(seen.given, seen.returned, tolerance):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*seen.given.shape[:2], *_MAP, generator=generator, dtype=seen.given.dtype)
    return _constant(x, module(x.clone()), tolerance)


def _constant(x: Tensor, y: Tensor, tolerance: float) -> bool:
    factors, _ = factors_of(x, y)
    return x.shape == y.shape and _equal(x * factors[:, :, None, None], y, tolerance)


def _is_branch(module: nn.Module, seen: _Pass, tolerance: float) -> bool:
    still = deep_copy(module)
    for p in still.parameters():
        p.zero_()
    return _equal(still(seen.given.clone()), seen.given, tolerance)


def _equal(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())


@contextmanager
def _hooked(
    network: nn.Module, names: Sequence[str], before: Callable[..., Any], after: Callable[..., Any]
) -> Iterator[None]:
    handles = []
    for name in names:
        module = network.get_submodule(name)
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(after(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
