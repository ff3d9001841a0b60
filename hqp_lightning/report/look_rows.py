"""The rows and sentences of a look, shared by console and page."""

from __future__ import annotations

from collections.abc import Sequence

from hqp_lightning.records import Look, LookPoint, PricedPart
from hqp_lightning.report.sentences import unit_counts
from hqp_lightning.report.units import ABSENT, change, count, decibel, ms

__all__ = ["CUT_HEADERS", "PART_HEADERS", "cut_table", "kept_lines", "noise_line", "part_rows"]

CUT_HEADERS = ("MACs", "loss, nats", "MACs left", "params left", "channels", "ms", "units")
PART_HEADERS = ("part", "channels", "MACs", "params", "nats", "half", "per 1 %")
_WORDS = {"left out": "not pruned", "approximate": "pruned approximately", "stays": "not pruned"}


def cut_table(points: Sequence[LookPoint]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The headers and the rows, without columns of which nothing is known."""
    rows = [
        (
            change(p.macs_removed),
            f"+{nats(p.predicted_loss_increase)}",
            count(p.macs),
            count(p.params),
            str(p.channels),
            ABSENT if p.latency_ms is None else ms(p.latency_ms),
            unit_counts(p.units) or ABSENT,
        )
        for p in points
    ]
    shown = [i for i in range(len(CUT_HEADERS)) if any(row[i] != ABSENT for row in rows)]
    return tuple(CUT_HEADERS[i] for i in shown), [tuple(row[i] for i in shown) for row in rows]


def part_rows(look: Look) -> list[tuple[str, ...]]:
    """Under `PART_HEADERS`: the cheapest first, by what the cheaper half costs for a hundredth of the dense MACs."""

    def price(part: PricedPart) -> float:
        saved = part.macs if part.kind != "channels" else part.macs / 2
        return part.cheaper_half / max(100 * saved / look.macs, 1e-12)

    return [
        (
            part.name if part.kind == "channels" else f"{part.kind} {part.name}",
            str(part.channels) if part.kind == "channels" else "whole",
            change(part.macs / look.macs),
            count(part.params),
            nats(part.loss),
            nats(part.cheaper_half) if part.kind == "channels" else ABSENT,
            nats(price(part)),
        )
        for part in sorted(look.parts, key=price)
    ]


def kept_lines(look: Look) -> list[str]:
    """What stays: one line for each reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for n in look.kept:
        by_reason.setdefault((_WORDS.get(n.status, n.status), n.reason), []).append(n.group)
    return [f"{words}: {', '.join(names)}: {reason}" for (words, reason), names in by_reason.items()]


def noise_line(look: Look) -> str:
    """What all of INT8 makes of the logits."""
    if look.int8_noise is None:
        return ""
    return f"INT8 of the dense network: logits at {decibel(look.int8_noise)} SQNR with all layers quantized"


def nats(value: float) -> str:
    """Two digits, never with an exponent.

    Examples:
        >>> nats(0.0123), nats(0.1), nats(3.21), nats(12.3), nats(0.0000012)
        ('0.012', '0.10', '3.2', '12', '0.0000')
    """
    size = abs(value)
    digits = 4 if size < 0.00995 else 3 if size < 0.0995 else 2 if size < 0.995 else int(size < 9.95)
    return f"{value:.{digits}f}"
