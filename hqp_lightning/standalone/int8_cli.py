"""INT8 for a float ONNX classifier, calibrated and scored on a folder of pictures; no torch, no training code."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hqp_lightning.board.files import check_writable, write_whole
from hqp_lightning.core.calibration import ACTIVATION_TYPES
from hqp_lightning.errors import ConfigurationError, HQPError
from hqp_lightning.export import DEFAULT_METHOD
from hqp_lightning.export.engines.rtx import CAPABILITIES
from hqp_lightning.export.options import FileOptions
from hqp_lightning.report import publish
from hqp_lightning.shipping.timing import processors
from hqp_lightning.standalone.arguments import add_pictures, given_pictures, input_size
from hqp_lightning.standalone.int8 import ship_file, write_float
from hqp_lightning.standalone.reading import read_model
from hqp_lightning.standalone.scoring import budget_of

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``hqp-int8``: 0 within the budget, 1 over it or refused."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hqp_lightning.standalone").setLevel(logging.INFO)  # a line for each stage
    try:
        within = _run(options)
    except (HQPError, OSError) as error:
        print(f"hqp-int8: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hqp-int8: interrupted", file=sys.stderr)
        return 130
    return 0 if within else 1


def _run(options: argparse.Namespace) -> bool:
    for name, number in (("calibration", options.calibration), ("threads", options.threads)):
        if number is not None and number < 1:
            raise ConfigurationError(f"--{name} {number}: expected at least 1")
    given = FileOptions(
        method=DEFAULT_METHOD,
        activation_type=options.activation_type,
        placement="paying",
        quantize_hardswish=False,
        quantize_se=False,
        engines=None,
        rtx=options.rtx,
        batch_size=1,
        threads=options.threads or processors(),
        latency_runs=100,
    )
    if options.output.is_file() or options.output.suffix == ".onnx":
        raise ConfigurationError(f"-o {options.output}: a folder is wanted, which gets some twenty files: -o deploy")
    reading = read_model(options.model, size=input_size(options))
    target = options.output / "model.onnx"
    if target.exists() and target.samefile(options.model):
        raise ConfigurationError(f"-o {options.output} holds {options.model} itself: name another folder")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        pictures = given_pictures(options, write_float(options.model, reading, Path(folder)).artifact)
        next(pictures.batches())  # the commonest faults of pictures are those of the first
    budget = {"max_drop": options.max_drop, "max_noise": options.max_noise}
    budget_of(pictures, **budget)
    with _nothing_left(target):
        check_writable(target)
        source = write_float(options.model, reading, options.output)
        report = ship_file(source, pictures, options.output, given, calibration=options.calibration, **budget)
        publish(report, options.output)
    return report.within_budget


@contextmanager
def _nothing_left(target: Path) -> Iterator[None]:
    """What is refused inside leaves no file and no folder that was not there before, and ``target`` as it was."""
    folder = target.parent
    made = next((f for f in (*reversed(folder.parents), folder) if not f.exists()), None)
    before, old = _content(folder), target.read_bytes() if target.is_file() else None
    try:
        yield
    except BaseException:
        for path in _content(folder) - before if made is None else {made}:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if old is not None:
            write_whole(target, old)
        raise


def _content(folder: Path) -> set[Path]:
    return {p for f in (folder, folder / "engines") if f.is_dir() for p in f.iterdir()}


def _list(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hqp-int8", description=__doc__)
    parser.add_argument("model", type=Path, help="a float classifier, opset 13 to 22, of any exporter")
    parser.add_argument("images", type=Path, help="folder of pictures, or of a folder for each class; or .npz")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--max-drop", type=float, metavar="D", help="of top-1, such as 0.01 (default with labels)")
    budget.add_argument("--max-noise", type=float, metavar="DB", help="the least SQNR of the logits (default: 15)")
    parser.add_argument("--calibration", type=int, default=512, metavar="N", help="pictures that set the ranges (512)")
    parser.add_argument("--activation-type", choices=ACTIVATION_TYPES, default="int8", help="uint8: for CPUs, finer")
    parser.add_argument("--threads", type=int, help="of the timed engines; default: all")
    usual = ",".join(CAPABILITIES)
    parser.add_argument("--rtx", type=_list, default=CAPABILITIES, metavar=usual, help="GPUs to compile for; '': none")
    add_pictures(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
