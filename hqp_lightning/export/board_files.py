"""What travels to the board beside the model: its forms for other TensorRT releases, and ``hqp-engine`` in one file."""

from __future__ import annotations

import logging
import os
import stat
import zipfile
from pathlib import Path

import hqp_lightning.board
from hqp_lightning import errors
from hqp_lightning.board.files import sweep, write_whole
from hqp_lightning.board.provenance import FORMS
from hqp_lightning.errors import ExportError
from hqp_lightning.export.forms import write_form

__all__ = ["FORMS", "PROGRAM", "board_files", "sweep", "write_program", "write_whole"]

PROGRAM = "hqp-engine.pyz"
_log = logging.getLogger(__name__)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal sources, equal bytes


def board_files(
    float_path: str | os.PathLike[str], int8_path: str | os.PathLike[str], activation_type: str = "int8"
) -> tuple[Path, ...]:
    """Write what ``hqp-engine`` needs beside the two models, for every release of TensorRT.

    Args:
        float_path: the float model.
        int8_path: the Q/DQ model, in the same folder.
        activation_type: of that model; for another than ``"int8"``, which TensorRT does not read, it has no forms.

    Returns:
        The models and what was written: ``tensorrt/*.onnx`` and ``hqp-engine.pyz``. A form that cannot be derived
        is left out with a warning: only the releases that need it miss it.
    """
    float_path, int8_path = Path(float_path), Path(int8_path)
    found = [int8_path, float_path]
    for path, form in ((int8_path, "trt8"), (int8_path, "fp16"), (float_path, "fp16")):
        target = path.parent / FORMS / f"{path.stem}.{form}.onnx"
        target.unlink(missing_ok=True)  # of an earlier run: worse than none
        if path == int8_path and activation_type != "int8":
            continue
        try:
            found.append(write_form(path, form, target))
        except ExportError as error:
            _log.warning("hqp: %s", error)
    return (*found, write_program(int8_path.parent / PROGRAM))


def write_program(path: str | os.PathLike[str]) -> Path:
    """Pack ``hqp-engine`` into one file that any Python from 3.8 on runs: ``python3 hqp-engine.pyz build ...``."""
    path, board = Path(path), Path(hqp_lightning.board.__file__).parent
    sources = {f"hqp_lightning/board/{p.name}": p.read_bytes() for p in sorted(board.glob("*.py"))}
    sources["hqp_lightning/errors.py"] = Path(errors.__file__).read_bytes()
    sources["hqp_lightning/__init__.py"] = b""
    sources["__main__.py"] = sources["hqp_lightning/board/__main__.py"]
    with path.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in sources.items():
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
