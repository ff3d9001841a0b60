"""Where two ONNX files of one network part, tensor by tensor: noise, clipping, saturated and dead channels, faults."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill

import numpy as np

from hqp_lightning.board.files import write_whole
from hqp_lightning.errors import ConfigurationError, ExportError, HQPError
from hqp_lightning.export.departures import compare_models
from hqp_lightning.report.tensors import fault_lines, tensor_lines, worst
from hqp_lightning.standalone.arguments import add_pictures, given_pictures, input_size
from hqp_lightning.standalone.int8 import write_float
from hqp_lightning.standalone.reading import read_model

__all__ = ["main"]

_PICTURES, _ROWS = 16, 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``hqp-debug``: 0 where no layer is at fault, 1 where one is, 2 where nothing could be compared."""
    options = _parser().parse_args(arguments)
    try:
        lines, faulty = _run(options)
    except (HQPError, OSError) as error:
        print(f"hqp-debug: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hqp-debug: interrupted", file=sys.stderr)
        return 130
    terminal = sys.stdout.isatty()  # elsewhere a sentence stays on a line
    for line in lines:
        print(fill(line, get_terminal_size().columns, subsequent_indent="  ") if terminal else line)
    return int(faulty)


def _run(options: argparse.Namespace) -> tuple[list[str], bool]:
    if options.rows < 0:
        raise ConfigurationError(f"--rows {options.rows}: expected a number of rows, or 0 for all")
    size = input_size(options)
    a, b = (read_model(path, size=size, quantized=True) for path in (options.a, options.b))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        first, second = (
            write_float(path, reading, Path(folder) / name).artifact
            for path, reading, name in ((options.a, a, "a"), (options.b, b, "b"))
        )
    if first.input_shape != second.input_shape:
        raise ExportError(f"{options.a} takes {first.input_shape}, {options.b} takes {second.input_shape}")
    images = np.concatenate(list(given_pictures(options, first).batches()))
    rows, how = compare_models(a.model, b.model, images)
    if options.json is not None:
        content = {"a": options.a.name, "b": options.b.name, "pictures": len(images), "matched_by": how}
        content |= {"tensors": [asdict(r) for r in rows]}
        write_whole(options.json, f"{json.dumps(content, indent=1)}\n".encode())
    shown = worst(rows, options.rows)
    more = f"; {len(shown)} shown: faults, first departure, noisiest" if len(shown) < len(rows) else ""
    head = f"{options.b.name} beside {options.a.name} on {len(images)} pictures: SQNR in dB"
    what = f"{len(rows)} tensors, matched by {how}{more}"
    return [head, what, "", *tensor_lines(shown), "", *fault_lines(rows)], any(r.fault for r in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hqp-debug", description=__doc__)
    parser.add_argument("a", type=Path, help="the file that is right, usually float")
    parser.add_argument("b", type=Path, help="the file in question, float or Q/DQ")
    parser.add_argument("images", type=Path, help="folder of pictures, or of a folder for each class; or .npz")
    parser.add_argument("--rows", type=int, default=_ROWS, metavar="N", help=f"to show, 0: all (default {_ROWS})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows, noises as error over signal")
    add_pictures(parser, _PICTURES)
    return parser


if __name__ == "__main__":
    sys.exit(main())
