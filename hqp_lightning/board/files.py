"""Files that are there whole or not at all: a build takes minutes, and a board's disk is small."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from hqp_lightning.errors import ExportError

__all__ = ["check_writable", "sweep", "write_whole"]


def check_writable(path: Path) -> None:
    """Create the folder of ``path`` and try to write there: now, not after minutes of building.

    Raises:
        ExportError: it is a folder, or cannot be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error}; name a file in a folder that you may write to") from error


def sweep(folder: Path) -> None:
    """Remove the parts of files that a killed process left in ``folder``; those of living ones stay."""
    for part in folder.glob(".*.*.part"):
        pid = part.name.split(".")[-2]
        # On Windows the signal 0 would end a process.
        if pid.isdigit() and os.name == "posix" and not _lives(int(pid)):
            with suppress(OSError):
                part.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def write_whole(path: Path, content: bytes) -> None:
    """Write a file; if that fails, what was at ``path`` is as it was. What killed processes left beside it goes.

    Raises:
        ExportError: it cannot be written (no space, no permission).
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    sweep(path.parent)
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise ExportError(f"cannot write {path} ({len(content) / 1e6:.1f} MB): {error}") from error
    finally:
        if part.exists():
            part.unlink()
