"""One call of a network: what it is given, by place and by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["Call", "OneTensor", "as_call"]


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call of a network; tensors may lie in lists, tuples and dicts.

    Attributes:
        args: by place.
        kwargs: by name.

    Examples:
        >>> import torch
        >>> call = Call((torch.ones(1, 2),), {"scale": 3.0})
        >>> call.map(lambda x: x + 1).args[0], [tuple(x.shape) for x in call.tensors()]
        (tensor([[2., 2.]]), [(1, 2)])
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def on(self, network: Callable[..., Any]) -> Any:
        """What the network returns."""
        return network(*self.args, **self.kwargs)

    def map(self, change: Callable[[Tensor], Any]) -> Call:
        """The same call with every tensor changed."""
        return Call(_map(self.args, change), _map(dict(self.kwargs), change))

    def tensors(self) -> tuple[Tensor, ...]:
        """Its tensors, by place, then by name."""
        found: list[Tensor] = []
        self.map(found.append)
        return tuple(found)

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of its tensors."""
        return tuple(tuple(x.shape) for x in self.tensors())


def as_call(example: Call | Sequence[Any]) -> Call:
    """A call from its arguments by place, or itself."""
    return example if isinstance(example, Call) else Call(tuple(example))


class OneTensor(nn.Module):
    """A network as a function of the one tensor that a call gives it; whatever else was given stays.

    Args:
        network: the network, shared.
        call: a call with one tensor, by place or by name.
    """

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor) -> Any:
        """The network's output for another tensor in the place of the call's."""
        return self.call.map(lambda _: x).on(self.network)


def _map(value: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: _map(v, change) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(v, change) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_map(v, change) for v in value)
    return value
