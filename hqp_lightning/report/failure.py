"""What is reported of a run that ended before its export did: the reason, and how to make the export later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from hqp_lightning.board.files import write_whole
from hqp_lightning.records import Budget, StepRecord
from hqp_lightning.report.html import page
from hqp_lightning.report.schema import SCHEMA_VERSION, encode
from hqp_lightning.report.sentences import step_line

__all__ = ["read_failure", "write_failure"]


def write_failure(
    folder: Path,
    reason: str,
    later: str,
    budget: Budget,
    steps: Sequence[StepRecord] = (),
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write ``report.json`` and ``report.html`` of a run that has a model, but no INT8 artifact.

    Args:
        folder: of the export.
        reason: why, in a line.
        later: the Python that makes the export from what is there.
        budget: what the run was held to.
        steps: of the pruning, with their outcomes.
        versions: package to version.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "failed": reason,
        "later": later,
        "budget": asdict(budget),
        "steps": [encode(step, StepRecord, f"step {step.index}") for step in steps],
        "versions": dict(versions or {}),
    }
    write_whole(folder / "report.json", f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode())
    lines = "".join(f"<p>{escape(step_line(s, max_drop=budget.max_drop, monitor=budget.monitor))}</p>\n" for s in steps)
    body = (
        f'<section class="verdict over">\n<strong>No INT8 artifact</strong>\n<p>{escape(reason)}</p>\n</section>\n'
        f"<section>\n<h2>The export, later</h2>\n<pre>{escape(later)}</pre>\n</section>\n"
        f"<section>\n<h2>Steps</h2>\n{lines or '<p>No pruning step was made.</p>'}</section>\n"
    )
    html = page(f"HQP report: {budget.monitor}", "HQP report: the run ended without an INT8 artifact", body)
    write_whole(folder / "report.html", html.encode())


def read_failure(path: Path) -> Mapping[str, Any] | None:
    """What `write_failure` wrote, or None for the report of a run that has its artifact."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return data if isinstance(data, dict) and "failed" in data else None
