"""The tensors inside what a network is given or returns: where they stand, their names, and others in their places."""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from torch import Tensor

from hqp_lightning.errors import ExportError

__all__ = ["Absent", "names", "put_back", "tensors_of", "unique"]

Path = tuple[str, ...]


def tensors_of(value: Any) -> dict[Path, Tensor]:
    """Where each tensor of lists, tuples, dicts and dataclasses stands, in their order; () is the value itself."""
    found: dict[Path, Tensor] = {}
    _changed(value, (), found.setdefault)
    return found


def names(paths: Iterable[Path], alone: str, place: str) -> tuple[str, ...]:
    """A name for each tensor of a structure: its keys, or the places in a list.

    Args:
        paths: of `tensors_of`.
        alone: the name of a value that is a tensor itself.
        place: what stands in front of the number of an element.

    Examples:
        >>> names([()], "logits", "output"), names([("out",), ("aux",)], "logits", "output")
        (('logits',), ('out', 'aux'))
        >>> names([("0",), ("1", "boxes"), ("levels", "0")], "logits", "output")
        ('output_0', 'output_1_boxes', 'levels_0')
    """
    made = ["_".join([place, *path] if path and path[0].isdecimal() else path) or alone for path in paths]
    return unique(made)


def unique(wanted: Iterable[str], taken: Collection[str] = ()) -> tuple[str, ...]:
    """The names with letters, digits and underscores alone, each once, and none of ``taken``."""
    made: list[str] = []
    for name in wanted:
        plain = re.sub(r"\W", "_", name)
        tried = (plain if k == 1 else f"{plain}_{k}" for k in range(1, len(made) + len(taken) + 2))
        made.append(next(n for n in tried if n not in made and n not in taken))
    return tuple(made)


class Absent:
    """Stands where a tensor was that the written file leaves out; whatever is done with it raises, with its name."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def _refuse(self, *_: Any) -> Any:
        raise _absent(self.__dict__["_name"])

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __float__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raise for it as an argument of any function of torch."""
        found = next((a for a in args if isinstance(a, Absent)), None)
        raise _absent("" if found is None else found.__dict__["_name"])


class _Part(dict[Any, Any]):
    """A dict without the entries that the file leaves out; asking for one of those says so."""

    def __missing__(self, key: Any) -> Any:
        raise _absent(str(key))


def put_back(returned: Any, paths: Sequence[Path], values: Sequence[Any]) -> Any:
    """What a network returned, with other tensors in their places.

    Tensors at other places are gone: a dict lacks them, elsewhere `Absent` stands for them.

    Args:
        returned: the structure.
        paths: where.
        values: what, in the same order.
    """
    given = dict(zip(paths, values, strict=True))
    return _changed(returned, (), lambda path, _: given[path] if path in given else Absent("_".join(path)))


def _changed(value: Any, path: Path, change: Callable[[Path, Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, dict):
        inside = {k: _changed(v, (*path, str(k)), change) for k, v in value.items()}
        if type(value) not in (dict, OrderedDict):  # such as the outputs of transformers, whose keys are attributes
            return type(value)(**inside)
        kept = {k: v for k, v in inside.items() if not isinstance(v, Absent)}
        return type(value)(kept) if len(kept) == len(inside) else _Part(kept)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_changed(getattr(value, n), (*path, n), change) for n in value._fields))
    if isinstance(value, (list, tuple)):
        return type(value)([_changed(v, (*path, str(k)), change) for k, v in enumerate(value)])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _changed(getattr(value, f.name), (*path, f.name), change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


def _absent(name: str) -> ExportError:
    return ExportError(
        f"validation needs the output {name!r}, which outputs=... of Int8Export leaves out: name it there, too, or let "
        "validation_step score without it"
    )
