"""Why a gate or a block went, or did not: what each was predicted to cost."""

from __future__ import annotations

from html import escape

from hqp_lightning.records import Report
from hqp_lightning.report.html_sections import table
from hqp_lightning.report.units import ABSENT

__all__ = ["units_html"]


def units_html(report: Report) -> str:
    """The units of the dense model, the cheapest first, and the step that each one went with for good."""
    gone = {n: s.index for s in report.steps if s.outcome == "kept" for n in s.units_removed}
    rows = []
    for unit in sorted(report.units, key=lambda u: u.loss):
        rise = ABSENT if unit.rise is None else f"{unit.rise:.2g}"
        went = f"step {gone[unit.unit]}" if unit.unit in report.units_removed and unit.unit in gone else ABSENT
        cells = [unit.unit.replace(":", " "), f"{unit.fisher:.2g}", rise, f"{unit.loss:.2g}", went]
        rows.append(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>\n")
    lead = (
        "Predicted rise of the dense model's loss without each of them, in nats. Blocks are ranked by what the loss "
        "was seen to rise without them, brought to the scale of half the Fisher values; gates by half the Fisher value."
    )
    headers = ["unit", "half the Fisher value", "loss seen to rise by", "ranked by", "went with"]
    return f'<p class="small">{escape(lead)}</p>\n{table(headers, rows)}' if rows else ""
