"""Stand-ins for what is not looked into while tracing: one node of the graph, whatever goes on inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_flatten, tree_unflatten

from hqp_lightning.errors import ConfigurationError

__all__ = ["check_scripts", "standing_in", "unreadable"]


def check_scripts(network: nn.Module) -> None:
    """Refuse modules without Python: they take no hooks, and nobody can cut them.

    Raises:
        ConfigurationError: a part was compiled by ``torch.jit``.
    """
    for name, m in network.named_modules():
        if isinstance(m, torch.jit.ScriptModule):
            raise ConfigurationError(
                f"{name or type(network).__name__!r} was compiled by torch.jit (script or trace), which can be neither "
                "traced nor cut: train and prune the module that it was made of, and compile it afterwards."
            )


def unreadable(network: nn.Module) -> dict[str, str]:
    """The layers whose weights can't be cut, by name, with the reason: reparametrized, recurrent, attention."""
    found: dict[str, str] = {}
    for name, m in network.named_modules():
        if any(name == outer or name.startswith(f"{outer}.") for outer in found):
            continue
        if parametrize.is_parametrized(m):
            found[name] = "its weights are computed from others (a parametrization)"
        elif isinstance(m, (nn.modules.conv._ConvNd, nn.Linear)) and not isinstance(m.weight, nn.Parameter):
            found[name] = "its weight is no parameter (an old weight_norm or spectral_norm)"
        elif isinstance(m, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
            found[name] = f"{type(m).__name__} is not supported"
    return found


@contextmanager
def standing_in(network: nn.Module, reasons: Mapping[str, str]) -> Iterator[None]:
    """Inside, the named modules compute the same, but appear to autograd as one operation each, named for them.

    Args:
        network: holds the modules.
        reasons: module name to why it is not looked into.
    """
    modules = {name: network.get_submodule(name) for name in reasons}
    hidden = {name: m.__dict__.get("forward") for name, m in modules.items()}
    try:
        for name, m in modules.items():
            m.__dict__["forward"] = _stand_in(f"{name!r} ({reasons[name]})", m.forward)
        yield
    finally:
        for name, m in modules.items():
            del m.__dict__["forward"]
            if hidden[name] is not None:
                m.__dict__["forward"] = hidden[name]


def _stand_in(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        with torch.no_grad():
            out = forward(*args, **kwargs)
        leaves, form = tree_flatten(out)
        floats = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()]
        # The extra input gives the node a place in the graph behind layers that read the network's own input.
        node = _StandIn.apply(
            name, len(floats), torch.zeros(1, requires_grad=True), *(leaves[i] for i in floats), *given
        )
        for i, x in zip(floats, node, strict=True):
            leaves[i] = x
        return tree_unflatten(leaves, form)

    return run


class _StandIn(torch.autograd.Function):
    """Hands tensors through; its inputs are what the module was given."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, _: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.stands_for = name
        return tuple(t.clone() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("for tracing only")
