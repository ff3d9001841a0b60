"""Several runs: going on with an interrupted one, and the Pareto front of them all."""

from hqp_lightning.sweeps.pareto import front, objectives, write_csv, write_png
from hqp_lightning.sweeps.resume import Found, find_earlier, note_failure, note_settings, set_logs_aside
from hqp_lightning.sweeps.runs import SweepRun, read_runs

__all__ = [
    "Found",
    "SweepRun",
    "find_earlier",
    "front",
    "note_failure",
    "note_settings",
    "objectives",
    "read_runs",
    "set_logs_aside",
    "write_csv",
    "write_png",
]
