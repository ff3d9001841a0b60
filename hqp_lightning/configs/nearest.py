"""Which name was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name.

    Args:
        name: what was given; a dotted key or a plain name.
        known: what there is.

    Returns:
        The nearest of ``known``, compared as a whole or by its last part; empty where nothing is near.

    Examples:
        >>> did_you_mean("hqp.max_dorp", ["hqp.max_drop", "hqp.mode"]), did_you_mean("max_drop", ["hqp.max_drop"])
        ('; did you mean hqp.max_drop?', '; did you mean hqp.max_drop?')
        >>> did_you_mean("xyz", ["hqp.max_drop"])
        ''
    """
    names = sorted(set(known))
    by_leaf: dict[str, str] = {}
    for full in names:
        by_leaf.setdefault(full.rpartition(".")[2], full)
    whole = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    leaf = difflib.get_close_matches(name.rpartition(".")[2], list(by_leaf), n=1, cutoff=0.75)
    nearest = whole or [by_leaf[key] for key in leaf]
    return f"; did you mean {nearest[0]}?" if nearest else ""
