"""The peak resident memory of this process."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_mib() -> float:
    """MiB, of this program alone: ``ru_maxrss`` of a child may be its parent's, from before the program was loaded."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """From now on `peak_mib` is of what comes; Linux alone can."""
    Path("/proc/self/clear_refs").write_text("5")
