"""Hold a report of the digits recipe against what the README promises."""

import sys
from pathlib import Path

from hqp_lightning.report import read_json

LEAST = {"macs_reduction": 0.70, "size_reduction": 0.85}

report = read_json(Path(sys.argv[1]))
failures = [
    f"{name} is {getattr(report, name):.4f}, promised is at least {least}"
    for name, least in LEAST.items()
    if getattr(report, name) < least
]
if not report.within_budget:
    failures.append(f"the INT8 drop is {report.accuracy_drop:.4f}, allowed is {report.budget.max_drop}")
if report.speedup is None:
    failures.append("no engine was timed")
sys.exit("\n".join(failures) or 0)
