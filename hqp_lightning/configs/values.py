"""Values against the type hints of what they are given to.

The signature of a ``_target_`` is its schema: a dataclass beside it would repeat every name, type and default.
"""

from __future__ import annotations

import collections.abc
import inspect
import os
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hqp_lightning.configs.nearest import did_you_mean
from hqp_lightning.errors import ConfigurationError

__all__ = ["check_values", "parameters"]

_WORDS = {int: "int", float: "float", bool: "bool", str: "str", type(None): "null"}


def check_values(cfg: DictConfig) -> None:
    """Compare every node that has a ``_target_`` with the signature of that target.

    Args:
        cfg: a composed configuration. Missing values (``???``) and interpolations that can't be resolved yet are left
            to whoever needs them, and so are types that YAML can't write.

    Raises:
        ConfigurationError: targets that are not there, names that the target does not take, each with the nearest
            one, and values of another type; all of them at once.
    """
    problems = [problem for path, node in _targets(cfg, "") for problem in _problems(path, node)]
    if problems:
        raise ConfigurationError("; ".join(problems))


def parameters(target: str) -> dict[str, Any] | None:
    """Names and type hints of what a dotted path takes; None if it takes any name or has no signature.

    Examples:
        >>> list(parameters("statistics.NormalDist"))
        ['mu', 'sigma']
    """
    try:
        thing = get_object(target)
        found = [p for name, p in inspect.signature(thing).parameters.items() if name != "_cls"]
    except (ImportError, ValueError, TypeError):  # not there, or written in C
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found):
        return None
    function = thing.__init__ if inspect.isclass(thing) else thing
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # hints of others may name what only a type checker sees
        hints = {}
    return {p.name: hints.get(p.name, Any) for p in found}


def _targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, ListConfig) and not node._is_none() and not node._is_missing():
        for k in range(len(node)):
            if not OmegaConf.is_missing(node, k) and not OmegaConf.is_interpolation(node, k):
                yield from _targets(node[k], f"{path}[{k}]")
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    if "_target_" in node:
        yield path, node
    for key in map(str, node):
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            yield from _targets(node[key], f"{path}.{key}" if path else key)


def _problems(path: str, node: DictConfig) -> Iterator[str]:
    try:
        target = node["_target_"]
    except OmegaConfBaseException:  # an interpolation, as below
        return
    if absent := _absent(target):
        yield f"{path}._target_: {absent}"
        return
    known = parameters(target)
    if known is None:
        return
    for name in (str(key) for key in node):
        key = f"{path}.{name}"
        if name.startswith("_") and name.endswith("_"):
            continue
        if name not in known:
            yield f"{key} is unknown" + (did_you_mean(key, [f"{path}.{k}" for k in known]) or f": {_list(known)}")
            continue
        if OmegaConf.is_missing(node, name):
            continue
        try:
            value = node[name]
        except OmegaConfBaseException:
            continue
        value = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value
        if not _fits(value, known[name]):
            yield f"{key} is {value!r} ({type(value).__name__}); expected {_words(known[name])}"


def _absent(target: Any) -> str:
    """Why nothing is found at a dotted path; empty if something is."""
    if not isinstance(target, str):
        return f"{target!r} is no dotted path"
    try:
        get_object(target)
    except (ImportError, ValueError) as error:
        module, _, name = target.rpartition(".")
        there = sys.modules.get(module)
        beside = {*dir(there), *getattr(there, "__all__", ())} if there else set()
        hint = did_you_mean(target, [f"{module}.{n}" for n in beside if not n.startswith("_")])
        # One that is there, and fails to load, says itself why.
        return f"there is no {target}{hint}" if hint and name not in beside else " ".join(str(error).split())
    return ""


def _list(known: Mapping[str, Any]) -> str:
    return "there are " + ", ".join(known)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, h) for h in inner)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if _is_path(hint):
        return isinstance(value, str)
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        return isinstance(value, list) and all(_fits(v, inner[0] if inner else Any) for v in value)
    if origin in (dict, collections.abc.Mapping):
        return isinstance(value, dict)
    # A class of somebody's, a callable, Any: only a node with a _target_ can become one, and that is instantiated.
    return hint is Any or value is None or not isinstance(hint, type) or isinstance(value, dict)


def _is_path(hint: Any) -> bool:
    kind = get_origin(hint) or hint
    return isinstance(kind, type) and issubclass(kind, os.PathLike)


def _words(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(h) for h in get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if _is_path(hint):
        return "str"
    inner = [_words(h) for h in get_args(hint) if h is not Ellipsis]
    if inner and get_origin(hint) in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        return f"list of {inner[0]}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
