"""What factors and shifts of channels cost: an OpenVINO call of the INT8 file with both, with factors alone, with none.

    python benchmarks/factors.py MODEL.onnx CALIBRATION.npy

A float file, and an array of images as it takes them; all layers in INT8. Each build times the three in turn, by the
processor's time (`benchmarks/int8.py`), since two builds of one file differ by more than what is asked for here.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from int8 import processor_ms
from printing import print_table

from hqp_lightning.export import collect_ranges, quantize
from hqp_lightning.export.engines import OpenVINOBackend

KINDS = {"both": {}, "factors": {"shifts": ()}, "none": {"shifts": (), "factors": ()}}


def rows(args: argparse.Namespace, folder: Path) -> Iterator[Sequence[str]]:
    images = np.load(args.images)
    ranges = collect_ranges(args.model, np.array_split(images, max(1, len(images) // 32)), threads=1)
    for kind, changed in KINDS.items():
        quantize(args.model, {n: replace(r, **changed) for n, r in ranges.items()}, folder / f"{kind}.onnx")
    for build in range(args.builds):
        engines = {k: OpenVINOBackend().build(folder / f"{k}.onnx", "int8", folder, threads=1) for k in KINDS}
        times = processor_ms(engines, images[:1], args.runs)
        for engine in engines.values():
            engine.close()
        yield str(build), f"{times['none']:.3f}", *(f"{times[k] / times['none']:.3f}" for k in ("factors", "both"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="float ONNX file")
    parser.add_argument("images", help=".npy, (images, *shape)")
    parser.add_argument("--builds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=40, help="timed calls")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print_table(f"median of {args.runs} calls", ("build", "none, ms", "factors", "both"), rows(args, Path(folder)))


if __name__ == "__main__":
    main()
