"""The walk through a dependency graph: everything that goes with the output channels of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hqp_lightning.surgery.ties import Ties

__all__ = ["Reached", "walk"]


class Reached:
    """The channels of one side of a layer that a walk reached: index to the root channel that it was reached from."""

    def __init__(self, node: Any, handler: Any) -> None:
        self.node, self.handler, self.roots = node, handler, dict[int, int]()


class _Index(NamedTuple):
    """An index at a layer and at the root, as the graph's mappings know it."""

    idx: int
    root_idx: int


def walk(node: Any, handler: Any, width: int, count: Callable[[Any, Any], int]) -> tuple[list[Reached], Ties, set[str]]:
    """Follow the graph's dependencies from a root, every index of every layer once.

    Args:
        node: the root's node in torch-pruning's graph.
        handler: what would prune the root's output channels.
        width: how many there are.
        count: how many channels there are where a handler prunes a node. An index beyond them is noted there, and goes
            no further: where positions and channels are taken for each other, indices grow with every turn.

    Returns:
        What was reached, in order; which channels of the root go together; and what was not looked into on the way.
    """
    found: dict[Any, Reached] = {}
    ties, hidden = Ties(width), set[str]()
    stack = [(node, handler, [_Index(i, i) for i in range(width)])]
    while stack:
        node, handler, index = stack.pop()
        reached = found.setdefault((node, handler), Reached(node, handler))
        end, fresh = count(node, handler), []
        for i in index:
            if i.idx in reached.roots:
                ties.join(reached.roots[i.idx], i.root_idx)
            elif i.idx < end:
                reached.roots[i.idx] = i.root_idx
                fresh.append(i)
            else:
                reached.roots.setdefault(end, i.root_idx)
        name = getattr(node.grad_fn, "stands_for", None)
        if name is not None:
            hidden.add(name)
        for dep in node.dependencies if fresh and name is None else ():
            if dep.is_triggered_by(handler):
                mapped = fresh
                try:
                    for mapping in dep.index_mapping:
                        mapped = mapping(mapped) if mapping is not None else mapped
                except (ArithmeticError, LookupError, TypeError):
                    hidden.add("an operation whose channels can't be followed")
                if any(i.root_idx is None for i in mapped):
                    hidden.add("an operation whose channels can't be followed")
                elif mapped:
                    stack.append((dep.target, dep.handler, mapped))
    return list(found.values()), ties, hidden
