"""Files that are there whole or not at all: a build takes minutes, and a board's disk is small."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hqp_lightning.errors import ExportError

__all__ = ["check_writable", "write_whole"]


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


def write_whole(path: Path, content: bytes) -> None:
    """Write a file; if that fails, what was at ``path`` is as it was.

    Raises:
        ExportError: it cannot be written (no space, no permission).
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise ExportError(f"cannot write {path} ({len(content) / 1e6:.1f} MB): {error}") from error
    finally:
        if part.exists():
            part.unlink()
