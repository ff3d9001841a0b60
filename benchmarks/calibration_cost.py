"""What calibration costs: `collect_ranges` against onnxruntime's plain forward passes over the same images, in one run.

    python benchmarks/calibration_cost.py                       # ResNet-18, 512 images at 224 px, two threads
    python benchmarks/calibration_cost.py --images 64 --threads 1

The two take turns, batch for batch the same images and the same threads; the figure is the ratio of the medians over
the turns. CPU time counts every thread, so that it hardly depends on what else the machine does. Memory is the peak of
a process of its own over an eighth and over half of the images (it must not grow with them).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torchvision
from memory import peak_mib as peak

from hqp_lightning.export import collect_ranges, export_onnx
from hqp_lightning.export.engines.base import processor_name

METHODS = ("mse", "entropy", "percentile", "max")


def batches(images: int, batch: int, px: int) -> Iterator[np.ndarray]:
    """The same two batches again and again, so that making images costs nothing."""
    rng = np.random.default_rng(0)
    pool = [rng.normal(size=(batch, 3, px, px)).astype(np.float32) for _ in range(2)]
    for k in range(images // batch):
        yield pool[k % 2]


def passes(path: str, args: argparse.Namespace, images: int) -> dict[str, Callable[[], object]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads

    def forward() -> None:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for x in batches(images, args.batch, args.px):
            session.run(None, {"input": x})

    def calibrate(method: str) -> Callable[[], object]:
        return lambda: collect_ranges(path, batches(images, args.batch, args.px), method=method, threads=args.threads)

    return {"forward": forward, **{method: calibrate(method) for method in args.methods}}


def peak_mib(path: str, phase: str, images: int) -> float:
    """Peak resident memory of a fresh process that does one pass."""
    command = [sys.executable, __file__, *sys.argv[1:], "--phase", json.dumps([path, phase, images])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a network of torchvision")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--phase", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.phase:
        path, phase, images = args.phase
        passes(path, args, images)[phase]()
        print(peak())
        return
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        torch.manual_seed(0)
        network = getattr(torchvision.models, args.model)(num_classes=10)
        export_onnx(network, torch.zeros(1, 3, args.px, args.px), Path(path))
        runs = passes(path, args, args.images)
        wall: dict[str, list[float]] = {name: [] for name in runs}
        processor: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.repeats):
            for name, run in runs.items():
                start = time.perf_counter(), time.process_time()
                run()
                wall[name].append(time.perf_counter() - start[0])
                processor[name].append(time.process_time() - start[1])
        print(
            f"{processor_name()}, {args.threads} threads, torch {torch.__version__}, onnxruntime "
            f"{onnxruntime.__version__}; {args.model}, {args.images} images at {args.px} px, batch {args.batch}; "
            f"median of {args.repeats}\n"
        )
        parts = tuple(max(args.images // k, args.batch) for k in (8, 2))  # a pass of no batch has no ranges
        peak_header = " | ".join(f"peak MiB, {n} images" for n in parts)
        print(f"| pass | wall s | ratio | CPU s | ratio | {peak_header} |\n" + "|---" * 7 + "|")
        base = {id(t): statistics.median(t["forward"]) for t in (wall, processor)}
        for name in runs:
            cells = [f"{(m := statistics.median(t[name])):.1f} | {m / base[id(t)]:.2f}" for t in (wall, processor)]
            measured = name in ("forward", args.methods[0])  # the methods differ only after the last batch
            peaks = [f"{peak_mib(path, name, n):.0f}" if measured else "" for n in parts]
            print(f"| {name} | " + " | ".join([*cells, *peaks]) + " |", flush=True)


if __name__ == "__main__":
    main()
