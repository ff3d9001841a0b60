"""Numbers as people read them; one place, so that console, Markdown and HTML say the same.

Only ASCII comes out: a log file in a C locale must not fail on a report.
"""

from __future__ import annotations

import math

from hqp_lightning.records import Latency

__all__ = ["ABSENT", "change", "count", "decibel", "factor", "fraction", "latency", "ms", "node", "size"]

ABSENT = "-"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    return f"{value:.{0 if magnitude >= 100 else 1 if magnitude >= 10 else 2}f}"


def _with_prefix(value: float, prefixes: tuple[str, ...]) -> str:
    value = float(f"{value:.3g}")  # round first: 999.9 k is 1.00 M, not 1000 k
    power = 0
    while abs(value) >= 1000 and power < len(prefixes) - 1:
        value /= 1000
        power += 1
    digits = f"{value:g}" if power == 0 else _three_digits(value)
    return f"{digits} {prefixes[power]}".rstrip()


def count(value: float) -> str:
    """A count (MACs, parameters) to three digits with an SI prefix.

    Examples:
        >>> count(1_824_033_792), count(999_999), count(512)
        ('1.82 G', '1.00 M', '512')
    """
    return _with_prefix(value, ("", "k", "M", "G", "T"))


def size(file_bytes: float) -> str:
    """A file size to three digits; 1 MB is 10^6 bytes.

    Examples:
        >>> size(44_678_123)
        '44.7 MB'
    """
    return _with_prefix(file_bytes, ("B", "kB", "MB", "GB"))


def fraction(value: float | None) -> str:
    """A score or a drop with four decimals, the unit in which users log and set their budget.

    Examples:
        >>> fraction(0.92412), fraction(-0.00001), fraction(None)
        ('0.9241', '0.0000', '-')
    """
    if value is None:
        return ABSENT
    text = f"{value:.4f}"
    return text[1:] if text.startswith("-") and float(text) == 0 else text


def change(reduction: float) -> str:
    """What became of a cost, in percent: a reduction of 0.329 reads ``-32.9 %``.

    Examples:
        >>> change(0.329), change(-0.02), change(0.0)
        ('-32.9 %', '+2.0 %', '0.0 %')
    """
    percent = round(-100 * reduction, 1)
    return f"{percent:+.1f} %" if percent else "0.0 %"


def ms(value: float) -> str:
    """Milliseconds to three digits, without the unit.

    Examples:
        >>> ms(2.8149), ms(12.34), ms(0.0312)
        ('2.81', '12.3', '0.031')
    """
    return f"{value:.3f}" if abs(value) < 0.1 else _three_digits(value)


def latency(value: Latency | None) -> str:
    """Median with the 95th percentile in brackets, milliseconds, without the unit.

    Examples:
        >>> latency(Latency(median=2.8149, p95=3.0401))
        '2.81 (3.04)'
    """
    return ABSENT if value is None else f"{ms(value.median)} ({ms(value.p95)})"


def factor(value: float | None) -> str:
    """A speedup: 4.312 times as fast reads ``4.31x``.

    Examples:
        >>> factor(4.312), factor(None)
        ('4.31x', '-')
    """
    return ABSENT if value is None else f"{_three_digits(value)}x"


def decibel(noise: float) -> str:
    """A ratio of noise to signal as the signal-to-noise ratio.

    Examples:
        >>> decibel(1e-4), decibel(0.0)
        ('40.0 dB', '-')
    """
    return f"{-10 * math.log10(noise):.1f} dB" if noise > 0 else ABSENT


def node(name: str) -> str:
    """A node that torch's exporter named by nested scopes, as the module's name and the operation.

    Examples:
        >>> node("/features/features.1/block/block.2/block.2.0/Conv"), node("/layer1/layer1.0/Add"), node("conv_7")
        ('features.1.block.2.0 Conv', 'layer1.0 Add', 'conv_7')
    """
    *scopes, operation = name.split("/")
    following = [*scopes[1:], ""]
    deepest = [a for a, b in zip(scopes, following, strict=False) if a and not b.startswith(f"{a}.")]
    return f"{'.'.join(deepest)} {operation}".strip()
