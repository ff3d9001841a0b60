"""Time the files of finished runs again: dense, pruned and INT8 of all of them in turn, in one process, on OpenVINO.

    python benchmarks/latency.py --threads 1 outputs/RECIPE/TIME/deploy [another ...]

The folders are those that ``Int8Export`` filled; ``model.uint8.onnx`` is timed where it was made, and the INT8 file
once more with its float parts in bfloat16 where the processor has it (docs/int8.md). Every repeat builds the engines
anew and calls them in a new random order every turn, a row of calls each: as many untimed as timed ones, since the
first calls after another engine's find cold caches (``--row 1 --warmup 0`` times exactly those). Of each call the wall
time and the processor time of the whole process are taken: on a busy machine trust the latter, with one thread.
``--nhwc`` times every folder a second time, with its files behind a transposition, as ``layout="NHWC"`` writes them.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper
from printing import print_table

from hqp_lightning.export import describe
from hqp_lightning.export.engines import Engine, OpenVINOBackend

FILES = {
    "dense": ("model.dense.onnx", "fp32"),
    "pruned": ("model.onnx", "fp32"),
    "int8": ("model.int8.onnx", "int8"),
    "int8+bf16": ("model.int8.onnx", "int8+bf16"),
    "uint8": ("model.uint8.onnx", "int8"),
}
QUANTIZED = [k for k in FILES if "int8" in k]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}

Key = tuple[str, str]
"""A folder and one of `FILES`."""


def with_channels_last(path: Path, out: Path) -> Path:
    """A file whose picture has its channels last: the same network behind a transposition."""
    model = onnx.load(path)
    (entry,) = model.graph.input
    taken = entry.name
    for node in model.graph.node:
        node.input[:] = ["as_before" if name == taken else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Transpose", [taken], ["as_before"], perm=[0, 3, 1, 2]))
    batch, channels, *sides = (d.dim_value or d.dim_param for d in entry.type.tensor_type.shape.dim)
    entry.CopyFrom(helper.make_tensor_value_info(taken, entry.type.tensor_type.elem_type, [batch, *sides, channels]))
    onnx.save(model, out)
    return out


def timed(
    engines: Mapping[Key, Engine], batches: Mapping[Key, np.ndarray], args: argparse.Namespace
) -> dict[str, dict[Key, float]]:
    """Clock to engine to the median of its calls, milliseconds."""
    spent: dict[str, dict[Key, list[float]]] = {clock: {k: [] for k in engines} for clock in CLOCKS}
    order, draw = list(engines), random.Random(0)
    for turn in range(1 + -(-args.runs // args.row)):  # nothing of the first, in which some build things
        draw.shuffle(order)
        for key in order:
            call = engines[key].prepared(batches[key])
            for made in range(args.warmup + args.row):
                before = {clock: now() for clock, now in CLOCKS.items()}
                call()
                for clock, now in CLOCKS.items():
                    if turn and made >= args.warmup:
                        spent[clock][key].append(1e3 * (now() - before[clock]))
    return {clock: {k: float(np.median(v)) for k, v in of.items()} for clock, of in spent.items()}


def rows(folders: Sequence[str], args: argparse.Namespace, scratch: Path) -> Iterator[Sequence[str]]:
    backend = OpenVINOBackend()
    paths = {
        (f, key): path
        for f in folders
        for key, (file, precision) in FILES.items()
        if precision in backend.offered() and (path := Path(f) / file).is_file()
    }
    if args.nhwc:
        for (folder, key), path in list(paths.items()):
            paths[f"{folder}, NHWC", key] = with_channels_last(path, scratch / f"{len(paths)}.onnx")
        folders = [f"{folder}{form}" for folder in folders for form in ("", ", NHWC")]
    draw = np.random.default_rng(0)
    shapes = {k: (args.batch_size, *describe(path).inputs[0].shape) for k, path in paths.items()}
    batches = {k: draw.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as cache:
            engines = {k: backend.build(p, FILES[k[1]][1], Path(cache), threads=args.threads) for k, p in paths.items()}
            times = timed(engines, batches, args)
            for engine in engines.values():
                engine.close()
        for folder in folders:
            for clock, of in times.items():
                dense = of[folder, "dense"]
                cells = [f"{of[folder, k]:.3f}" if (folder, k) in of else "" for k in FILES]
                faster = [f"{dense / of[folder, k]:.2f}x" if (folder, k) in of else "" for k in QUANTIZED]
                alike = [k for k in QUANTIZED if (folder, k) in of and (folders[0], k) in of]
                yield (
                    folder,
                    clock,
                    *cells,
                    *faster,
                    " ".join(f"{of[folders[0], k] / of[folder, k]:.2f}x" for k in alike),
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="DEPLOY")
    for name, default in {"batch_size": 1, "threads": 2, "runs": 200, "repeats": 3, "row": 20, "warmup": 20}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--nhwc", action="store_true", help="every folder once more, channels last")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = f"batch {args.batch_size}, threads {args.threads}; ms: median of {args.runs} calls, {args.row} in a row"
    header = ("run", "time", *FILES, *(f"dense over {k}" for k in QUANTIZED), "the first run's over these")
    with tempfile.TemporaryDirectory() as scratch:
        print_table(about, header, rows(args.folders, args, Path(scratch)))


if __name__ == "__main__":
    main()
