"""What a latency table predicted, and what was measured, in a sentence."""

from __future__ import annotations

from hqp_lightning.records import Report

__all__ = ["predicted_line"]


def predicted_line(report: Report) -> str:
    """One line; empty where no table ranked the channels."""
    if (found := report.latency) is None:
        return ""
    threads = f", {found.threads} thread{'' if found.threads == 1 else 's'}" if found.threads else ""
    now = (
        "not measured here"
        if found.measured_ms is None
        else f"measured {_with(found.measured_ms, found.measured_dense_float_ms)}"
    )
    return (
        f"latency table of {found.engine} {found.version} ({found.clock} time{threads}, {found.device}): "
        f"INT8 predicted {_with(found.predicted_ms, found.dense_float_ms)}, {now}"
    )


def _with(ms: float, dense_ms: float | None) -> str:
    faster = "" if dense_ms is None else f" ({dense_ms / ms:.2f}× the dense float network's {dense_ms:.3g} ms)"
    return f"{ms:.3g} ms{faster}"
