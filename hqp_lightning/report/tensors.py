"""Two files of one network, tensor by tensor, in words and as a table of 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from hqp_lightning.records import ComparedTensor, Report
from hqp_lightning.report.units import ABSENT, decibel, node

__all__ = ["fault_lines", "shortened", "tensor_cells", "tensor_lines", "tensors_html", "worst"]

HEADERS = ("layer", "running", "alone", "quant.", "clipped", "satur.", "dead")
_WIDTHS = (34, 7, 7, 7, 7, 6, 6)
_FAR = 0.01  # 20 dB
_SHOWN = 20


def worst(rows: Sequence[ComparedTensor], count: int) -> list[ComparedTensor]:
    """Those at fault, the first to depart, and the noisiest by themselves up to ``count``; in their order. 0: all."""

    def rank(row: ComparedTensor) -> tuple[bool, float]:
        return not row.fault, -max(row.alone, row.quantizing or 0.0)

    chosen = {r.tensor for r in sorted(rows, key=rank)[: count or len(rows)]}
    first = _first(rows)
    return [r for r in rows if r.tensor in chosen or r.fault or r is first]


def tensor_cells(row: ComparedTensor) -> tuple[str, ...]:
    """A row under `HEADERS`: SQNR in dB, the share clipped, channels."""
    return (
        _named(row),
        _number(row.running),
        _number(row.alone),
        _number(row.quantizing),
        ABSENT if row.clipped is None else f"{100 * row.clipped:.2f} %",
        ABSENT if row.saturated is None else str(row.saturated),
        str(row.dead),
    )


def tensor_lines(rows: Sequence[ComparedTensor]) -> list[str]:
    """The table as lines; long names lose their beginning, or what they have in common if they would look alike."""
    lines = [HEADERS, *map(tensor_cells, rows)]
    names = shortened([cells[0] for cells in lines], _WIDTHS[0])
    return [
        " ".join([name.ljust(_WIDTHS[0]), *(c.rjust(w) for c, w in zip(cells[1:], _WIDTHS[1:], strict=True))])
        for name, cells in zip(names, lines, strict=True)
    ]


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Each name in ``width`` characters: without its beginning, its middle or its end, the first that is its own.

    Examples:
        >>> shortened(["stage1/block/convolution", "stage2/block/convolution", "head"], 12)
        ['stage1/bl...', 'stage2/bl...', 'head']
        >>> shortened(["stage1/block/convolution", "stage2/block/convolution", "head"], 16)
        ['stage1/...lution', 'stage2/...lution', 'head']
    """
    half = (width - 3) // 2

    def forms(name: str) -> list[str]:
        if len(name) <= width:
            return [name] * 3
        return [
            f"...{name[3 - width :]}",
            f"{name[: width - 3 - half]}...{name[-half:]}",
            f"{name[: width - 3]}...",
        ]

    taken = [Counter(column) for column in zip(*map(forms, dict.fromkeys(names)), strict=True)]
    return [next((f for f, seen in zip(forms(n), taken, strict=True) if seen[f] == 1), forms(n)[1]) for n in names]


def fault_lines(rows: Sequence[ComparedTensor]) -> list[str]:
    """Which layers are at fault, and where the files part first."""
    said = [f"at fault: {_named(r)}: {r.fault}" for r in rows if r.fault]
    if first := _first(rows):
        said.append(f"the files part first at {_named(first)}: {decibel(first.running)} where both run on their own")
    if not any(r.fault for r in rows):
        loud = max(rows, key=lambda r: max(r.alone, r.quantizing or 0.0))
        noise = max(loud.alone, loud.quantizing or 0.0)
        said.append(f"no layer is at fault; the noisiest by itself is {_named(loud)}: {decibel(noise)}")
    return said


def tensors_html(report: Report) -> str:
    """The noisiest on the report's page, with what the columns say."""
    if not report.tensors:
        return ""
    head = "".join(f'<th class="{"number" if k else ""}">{escape(h)}</th>' for k, h in enumerate(HEADERS))
    rows = (tensor_cells(r) for r in worst(report.tensors, _SHOWN))
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>\n" for cells in rows)
    lead = (
        "SQNR in dB: both files running, the node alone on the float file's tensors, the quantizer behind it alone; "
        f"the share that it clips, and saturated and dead channels. The noisiest of {len(report.tensors)} tensors."
    )
    said = "".join(f"<p>{escape(text)}</p>\n" for text in fault_lines(report.tensors))
    return (
        f'{said}<p class="small">{escape(lead)}</p>\n<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _named(row: ComparedTensor) -> str:
    """The node in words, with its operator where an exporter's name does not say it."""
    words = node(row.layer) if row.layer else row.tensor
    return words if not row.layer or row.operator.lower() in words.lower() else f"{words} {row.operator}"


def _number(noise: float | None) -> str:
    """Of SQNR in dB, exact ones as such."""
    if noise is None:
        return ABSENT
    return "exact" if noise < 1e-11 else decibel(noise).removesuffix(" dB")


def _first(rows: Sequence[ComparedTensor]) -> ComparedTensor | None:
    """Where the files part."""
    return next((r for r in rows if r.running > _FAR), None)
