"""The conditional search as a value: what to try next after a verdict. It decides; the callback acts."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Search", "advance", "finish"]


@dataclass(frozen=True, slots=True)
class Search:
    """Where the search stands.

    Attributes:
        step: fraction of the dense MACs that the next step should save.
        min_step: below this step the search ends.
        index: number of the next step, from 1.
        ended: the reason why no further step is tried, or None.
    """

    step: float
    min_step: float
    index: int = 1
    ended: str | None = None


def advance(search: Search, kept: bool) -> Search:
    """After a kept step go on with the same size, after a rolled-back or refused one with half of it.

    Examples:
        >>> s = advance(Search(0.05, 0.02), kept=False)
        >>> s.step, s.ended, advance(s, kept=False).ended
        (0.025, None, 'the step fell below min_step=0.02')
    """
    search = replace(search, index=search.index + 1)
    if kept:
        return search
    step = search.step / 2
    if step < search.min_step:
        return finish(search, f"the step fell below min_step={search.min_step:g}")
    return replace(search, step=step)


def finish(search: Search, reason: str) -> Search:
    """The search, ended for a reason; the first reason stays."""
    return search if search.ended else replace(search, ended=reason)
