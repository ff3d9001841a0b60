"""One call of a network: what it is given, by place and by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hqp_lightning.core.recomputing import without_reentrance
from hqp_lightning.core.structure import Path, names, tensors_of, unique

__all__ = ["Call", "OneTensor", "Tensors", "as_call"]


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
        with without_reentrance():
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

    def names(self, function: Callable[..., Any]) -> tuple[str, ...]:
        """A name for each of its tensors: the parameter of ``function``, with keys and places behind it.

        Where the only argument is a dict, its keys.

        Examples:
            >>> import torch
            >>> x = torch.ones(1, 2)
            >>> Call((x, [x, x]), {"mask": x}).names(lambda image, levels, mask: None)
            ('image', 'levels_0', 'levels_1', 'mask')
            >>> Call(({"left": x, "right": x},)).names(lambda batch: None)
            ('left', 'right')
        """
        parameters = list(inspect.signature(function).parameters.values())
        placed = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        placed += [f"input_{k}" for k in range(len(placed), len(self.args))]
        given = dict(zip(placed, self.args, strict=False)) | dict(self.kwargs)
        if len(given) == 1 and isinstance(only := next(iter(given.values())), dict):
            return names(tensors_of(only), "input", "input")
        return unique("_".join(path) for path in tensors_of(given))


def as_call(example: Call | Sequence[Any]) -> Call:
    """A call from its arguments by place, or itself."""
    return example if isinstance(example, Call) else Call(tuple(example))


def _as_it_is(x: Tensor) -> Tensor:
    return x


class OneTensor(nn.Module):
    """A network as a function of the one tensor that a call gives it; whatever else was given stays.

    Args:
        network: the network, shared.
        call: a call with one tensor, by place or by name.
        change: what is done to the tensor before the network gets it.
    """

    def __init__(self, network: nn.Module, call: Call, change: Callable[[Tensor], Tensor] = _as_it_is) -> None:
        super().__init__()
        self.network, self.call, self.change = network, call, change

    def forward(self, x: Tensor) -> Any:
        """The network's output for another tensor in the place of the call's."""
        return self.call.map(lambda _: self.change(x)).on(self.network)


class Tensors(nn.Module):
    """A network as a function of the tensors that a call gives it, in their order; it returns tensors alone.

    Args:
        network: the network, shared.
        call: a call; what is no tensor in it stays.
        outputs: where the tensors stand that are wanted of what the network returns, see `tensors_of`.
        change: what is done to each tensor before the network gets it.
    """

    def __init__(
        self, network: nn.Module, call: Call, outputs: Sequence[Path], change: Callable[[Tensor], Tensor] = _as_it_is
    ) -> None:
        super().__init__()
        self.network, self.call, self.outputs, self.change = network, call, tuple(outputs), change

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The network's outputs for other tensors in the places of the call's."""
        given = iter(tensors)
        found = tensors_of(self.call.map(lambda _: self.change(next(given))).on(self.network))
        return tuple(found[path] for path in self.outputs)


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
