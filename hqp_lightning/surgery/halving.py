"""Which of many are at fault, with few questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["failing"]


def failing(names: Sequence[str], test: Callable[[Sequence[str]], str]) -> dict[str, str]:
    """The groups without which ``test`` finds nothing wrong, each with what it says; found by halving.

    >>> failing("abcde", lambda names: "bad" if {"b", "e"} & set(names) else "")
    {'b': 'bad', 'e': 'bad'}
    """
    bad = _halved(names, test)
    good = [n for n in names if n not in bad]
    while bad and good and (reason := test(good)):  # each alone is right, but not together
        bad |= _halved(good, test) or {good[-1]: reason}
        good = [n for n in good if n not in bad]
    return bad


def _halved(names: Sequence[str], test: Callable[[Sequence[str]], str]) -> dict[str, str]:
    reason = test(names) if names else ""
    if not reason or len(names) == 1:
        return dict.fromkeys(names, reason) if reason else {}
    half = len(names) // 2
    return _halved(names[:half], test) | _halved(names[half:], test) or {names[-1]: reason}
