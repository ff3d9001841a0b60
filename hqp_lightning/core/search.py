"""The conditional search as a value: what to try next after a verdict. It decides; the callback acts."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Search", "advance", "finish", "pause", "resume"]


@dataclass(frozen=True, slots=True)
class Search:
    """Where the search stands.

    Attributes:
        step: fraction of the dense MACs that the next step should save.
        min_step: below this step the search ends.
        index: number of the next step, from 1.
        ended: the reason why no further step is tried, or None.
        paused: the reason why none is tried in this ``fit``; a further one goes on.
    """

    step: float
    min_step: float
    index: int = 1
    ended: str | None = None
    paused: str | None = None

    @property
    def stopped(self) -> str | None:
        """Why no step is tried now, or None."""
        return self.ended or self.paused


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


def pause(search: Search, reason: str) -> Search:
    """The search, stopped for as long as this ``fit`` lasts; the first reason stays.

    Examples:
        >>> s = pause(Search(0.05, 0.02), "fit ended")
        >>> s.stopped, resume(s).stopped, resume(finish(s, "too small")).stopped
        ('fit ended', None, 'too small')
    """
    return replace(search, paused=search.paused or reason)


def resume(search: Search) -> Search:
    """The search in another ``fit``: what ended for good stays so."""
    return replace(search, paused=None)
