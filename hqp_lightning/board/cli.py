"""Build, time, inspect, check and profile a TensorRT engine on the machine that will run it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hqp_lightning.board.arrays import bundle
from hqp_lightning.board.build import MAX_BATCH, PRECISIONS
from hqp_lightning.board.building import build
from hqp_lightning.board.checking import check
from hqp_lightning.board.layers import read_layers, table
from hqp_lightning.board.library import title
from hqp_lightning.board.lint import lint, summary
from hqp_lightning.board.loading import load
from hqp_lightning.board.make import fallback_lines
from hqp_lightning.board.notes import read_note
from hqp_lightning.board.profiling import profile
from hqp_lightning.board.provenance import verify
from hqp_lightning.board.rtx import CAPABILITIES, read_table
from hqp_lightning.errors import ExportError, HQPError

__all__ = ["bench", "build", "check", "inspect", "main", "profile"]


def bench(engine: Path, batch_size: int | None = None, warmup: int = 50, runs: int = 200) -> list[str]:
    """Time an engine on random input; return the lines to show."""
    import numpy as np

    if batch_size is not None and batch_size < 1:
        raise ExportError(f"batch size {batch_size}: expected at least 1")
    loaded, note, said = load(engine)
    with loaded:
        n = loaded.batch_size if batch_size is None else batch_size
        random = np.random.default_rng(0)

        def drawn(shape: tuple[int, ...], kind: Any) -> Any:
            if kind == np.float32:
                return random.standard_normal((n, *shape), dtype=np.float32)
            return random.integers(0, 256 if kind == np.uint8 else 2, (n, *shape))

        batch = bundle([drawn(*entry) for entry in loaded.inputs.values()])
        times = loaded.time(batch, warmup=warmup, runs=runs)
    return [
        *said,
        f"{engine.name}: {note['precision']}, batch {n}, {loaded.gpu}, {title(loaded.library)}",
        f"latency {times.median_ms:.3f} ms median, {times.p95_ms:.3f} ms p95 of {runs} calls after {warmup} "
        "(GPU time by CUDA events, without copies)",
        f"throughput {times.images_per_s:.0f} images/s, calls in a row",
    ]


def inspect(engine: Path, as_json: bool = False) -> list[str]:
    """Show the precision that each layer got, or what is to be said of a model; return the lines to show."""
    if engine.suffix == ".onnx":
        return [verify(engine), summary(engine), *(f"warning: {text}" for text in lint(engine))]
    said: list[str] = []
    note = read_note(engine)
    if "tensorrt_rtx" in note:  # needs no GPU: the compiler's own table lies beside it
        inspection = read_table(engine)
    else:
        loaded, note, said = load(engine)
        with loaded:
            inspection = loaded.layers()
    if as_json:
        return [inspection]
    layers = read_layers(inspection)
    return [*said, table(layers), *fallback_lines(layers, note.get("int8_asked", []))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``hqp-engine``; returns the exit status."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        print("\n".join(command(**options)))
    except (HQPError, OSError) as error:
        print(f"hqp-engine: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hqp-engine: interrupted", file=sys.stderr)
        return 130
    return 0


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hqp-engine", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command: Any, first: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(command.__name__, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument(first, type=Path)
        return sub

    sub = add(build, "onnx", "build an engine for this GPU")
    sub.add_argument("-o", "--engine", type=Path, required=True, help="file to write; its note is ENGINE.json")
    sub.add_argument("--precision", choices=PRECISIONS, help="int8 for a Q/DQ model, else fp16, by default")
    sub.add_argument("--batch-size", type=int, default=1, help="to optimise for (default 1)")
    sub.add_argument("--max-batch", type=int, help=f"largest that runs (default: batch size, at least {MAX_BATCH})")
    sub.add_argument("--timing-cache", type=Path, help="read and written: the next build is fast")
    sub.add_argument("--workspace", type=int, metavar="MB", help="scratch memory of a layer (default: the whole GPU)")
    sub.add_argument("--optimization-level", type=int, choices=range(6), help="5 searches longest (8.6 and later)")
    usual = ",".join(CAPABILITIES)
    sub.add_argument("--rtx", type=_list, metavar=usual, help="compile for such GPUs of other machines, without a GPU")
    sub.add_argument("--verbose", action="store_true", help="print all that TensorRT reports")
    sub = add(bench, "engine", "time an engine")
    sub.add_argument("--batch-size", type=int, help="default: what it was optimised for")
    sub.add_argument("--warmup", type=int, default=50, help="untimed calls (default 50)")
    sub.add_argument("--runs", type=int, default=200, help="timed calls (default 200)")
    sub = add(inspect, "engine", "show which precision each layer got, or what releases may refuse in a model.onnx")
    sub.add_argument("--json", dest="as_json", action="store_true", help="the inspector's own report")
    sub = add(check, "engine", "compare an engine with the export's logits, and measure its accuracy")
    sub.add_argument("data", type=Path, nargs="?", help="folder class/image.jpg, or .npz with images and labels")
    sub.add_argument("--manifest", type=Path, help="manifest.json, if the engine's note does not know it")
    sub.add_argument("--limit", type=int, help="use so many images, evenly spread")
    sub = add(profile, "networks", "write the latency table of this GPU, for cost=... of a pruning")
    sub.add_argument("-o", "--output", type=Path, required=True, help="table to write, such as orin.latency.json")
    sub.add_argument("--runs", type=int, default=200, help="timed calls of each network (default 200)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
