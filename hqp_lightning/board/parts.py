"""Which part of a network an engine's layer is, by its name: those of nodes, joined and lengthened."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

__all__ = ["part_of", "totals"]

_QUANTIZER = ("_quantize", "_dequantize")
_TOKEN = re.compile(r"[^\s\[\]{}(),+]+")


def part_of(names: Iterable[str], nodes: Mapping[str, str], layers: Collection[str]) -> str | None:
    """The part that runs under these names: a layer, if one is among them; else the last one.

    A quantizer goes with what wrote its tensor, if there is nothing else.

    Args:
        names: of nodes or tensors, perhaps with something behind.
        nodes: names of nodes and tensors of the float file to parts.
        layers: those parts that are layers.

    Returns:
        Its name; None where nothing is known.

    Examples:
        >>> nodes = {"/a/Conv": "a", "/a/Conv_output_0": "a", "/b/Add": "/b/Add"}
        >>> part_of(["/a/Conv_output_0_quantize", "/b/Add"], nodes, {"a"}), part_of(["/a/Conv/Folded"], nodes, {"a"})
        ('/b/Add', 'a')
    """
    found: list[tuple[str, bool]] = []
    for name in names:
        node = max((n for n in nodes if name.startswith(n)), key=len, default=None)
        if node is not None:
            found.append((nodes[node], name.endswith(_QUANTIZER)))
    first = [part for part, quantizer in found if part in layers and not quantizer]
    others = [part for part, _ in found if part not in layers]
    return next(iter([*first, *reversed(others), *(part for part, _ in found)]), None)


def totals(times: Mapping[str, float], nodes: Mapping[str, str], layers: Collection[str]) -> dict[str, float]:
    """Milliseconds by part, from those of an engine's layers; what can't be told apart goes to none.

    >>> totals({"a.weight + /a/Conv + /a/Relu": 2.0, "Reformatting CopyNode": 1.0}, {"/a/Conv": "a"}, {"a"})
    {'a': 2.0}
    """
    found: dict[str, float] = {}
    for name, ms in times.items():
        tokens = [t for token in _TOKEN.findall(name) for t in token.split("...")]
        part = part_of(tokens, nodes, layers)
        if part is not None:
            found[part] = found.get(part, 0.0) + ms
    return found
