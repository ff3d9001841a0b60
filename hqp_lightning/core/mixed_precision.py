"""Which layers stay in float, and how many: noise against cost, and a search over a measured predicate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

__all__ = ["by_worth", "fewest", "regions", "taken_out"]

_TOGETHER = 4


def by_worth(noise: Mapping[str, float], costs: Mapping[Sequence[str], float], coin: float) -> list[str]:
    """Order layers by the noise that they win for what they cost, best first; a pair may come before its members.

    The worth of a unit (one layer, or some that are cheaper together) is the noise of those of its layers that are not
    in float yet, over what they add to the cost. Costs are counted in whole coins, and no layer is taken as cheaper
    than one: so the clock's own error decides nothing, and among layers that cost about alike their noise does.

    Args:
        noise: layer to the noise that it puts into the logits.
        costs: unit to what its layers cost together in float; every layer is a unit of its own, too.
        coin: above 0, in the unit of the costs.

    >>> by_worth({"a": 4, "b": 3, "c": 2}, {("a",): 4, ("b",): 4, ("c",): 1, ("a", "b"): 3}, 0.5)
    ['a', 'b', 'c']
    """
    order: list[str] = []

    def worth(unit: Sequence[str]) -> float:
        left = [layer for layer in unit if layer not in order]
        spent = max((costs[u] for u in costs if set(u) < set(unit) and set(u) <= set(order)), default=0.0)
        return sum(noise[layer] for layer in left) / max(round((costs[unit] - spent) / coin), len(left))

    while len(order) < len(noise):
        best = max((u for u in costs if not set(u) <= set(order)), key=worth)
        order += sorted((layer for layer in best if layer not in order), key=lambda layer: -noise[layer])
    return order


def fewest(limit: int, enough: Callable[[int], bool]) -> int | None:
    """The smallest ``k`` in 1 ... ``limit`` with ``enough(k)``, by doubling and bisection: about 2·log2(k) calls.

    ``enough`` is taken as monotone. A measured score is so only up to noise; then the result still is a ``k`` that
    was measured as enough while a measured smaller one was not.

    Args:
        limit: largest ``k`` that is tried; below 1 nothing is.
        enough: a costly test.

    Returns:
        ``k``, or None if ``limit`` itself is not enough.

    Examples:
        >>> fewest(12, lambda k: k >= 5), fewest(12, lambda k: k > 20), fewest(1, bool)
        (5, None, 1)
    """
    low, high = 0, 1  # low is not enough
    while high <= limit and not enough(high):
        low, high = high, max(high + 1, min(2 * high, limit))
    if high > limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def regions(layers: Sequence[str]) -> list[tuple[str, ...]]:
    """What is tried together: neighbours first, since a layer between two INT8 ones hands on what it saves only so.

    >>> regions(["a", "b", "c", "d", "e"])
    [('a', 'b', 'c', 'd'), ('e',), ('a',), ('b',), ('c',), ('d',), ('e',)]
    """
    return [tuple(layers[k : k + size]) for size in (_TOGETHER, 1) for k in range(0, len(layers), size)]


def taken_out(
    left: Sequence[str],
    layers: Sequence[str],
    tries: Iterable[Sequence[str]],
    better: Callable[[Collection[str], Collection[str]], bool],
) -> tuple[str, ...]:
    """Take regions out of INT8, one after the other, where that is better.

    Args:
        left: what is in float from the start.
        layers: the others, in graph order.
        tries: regions of them, in the order in which they are tried.
        better: a costly test of what would be in float then against what is: ``better(now, tried)``.

    Returns:
        What to leave in float; never all, since then a float file is the answer.

    >>> taken_out(["se"], ["a", "b"], regions(["a", "b"]), lambda now, tried: "b" in tried)
    ('se', 'b')
    """
    found = set(left)
    for region in tries:
        tried = found.union(region)
        if tried != found and not set(layers) <= tried and better(found, tried):
            found = tried
    return tuple(n for n in (*left, *layers) if n in found)
