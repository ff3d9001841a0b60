"""Time the files of finished runs again: dense, pruned and INT8 in turn, in one process, on OpenVINO.

    python benchmarks/latency.py outputs/RECIPE/TIME/deploy [another ...]

The folders are those that ``Int8Export`` filled; ``model.uint8.onnx`` is timed where it was made (docs/int8.md). Every
repeat builds the engines anew.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from printing import print_table

from hqp_lightning.export import describe
from hqp_lightning.export.engines import OpenVINOBackend, latencies

FILES = {"dense": "model.dense.onnx", "pruned": "model.onnx", "int8": "model.int8.onnx", "uint8": "model.uint8.onnx"}


def rows(folders: Sequence[str], args: argparse.Namespace) -> Iterator[Sequence[str]]:
    backend = OpenVINOBackend()
    for folder in folders:
        paths = {key: path for key, file in FILES.items() if (path := Path(folder) / file).is_file()}
        shape = describe(paths["dense"]).inputs[0].shape
        batch = np.random.default_rng(0).normal(size=(args.batch_size, *shape)).astype(np.float32)
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as cache:
                engines = {
                    k: backend.build(p, "int8" if "int8" in k else "fp32", Path(cache), threads=args.threads)
                    for k, p in paths.items()
                }
                times = latencies(engines, batch, runs=args.runs)
                for engine in engines.values():
                    engine.close()
            cells = [f"{times[k].median:.2f} ({times[k].p95:.2f})" if k in times else "" for k in FILES]
            speedups = [f"{times['dense'].median / times[k].median:.2f}x" if k in times else "" for k in FILES]
            yield folder, *cells, *speedups[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="DEPLOY")
    for name, default in {"batch_size": 1, "threads": 2, "runs": 200, "repeats": 3}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = f"batch {args.batch_size}; ms: median (p95) of {args.runs} calls"
    print_table(about, ("run", *FILES, "dense over int8", "dense over uint8"), rows(args.folders, args))


if __name__ == "__main__":
    main()
