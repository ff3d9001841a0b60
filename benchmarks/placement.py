"""What stays in float, by three measures: kernels of NVIDIA's compiler, noise of the logits, time on a CPU.

    pip install -e ".[openvino,rtx]"
    python benchmarks/placement.py efficientnet_b0 mobilenet_v3_small --px 224 --classes 1000
    python benchmarks/placement.py mobilenet_v3_small=mv3.pth --calibration CALIBRATION.npz --images TEST.npz

A network of torchvision with random weights, or with a state dict and images that are prepared as it takes them
(float32 ``images`` (n, 3, height, width) and ``labels``, as for ``hqp-engine check``). The placements are those of
``Int8Export``: "all", "paying", and with ``--compiled`` and ``--timed`` what the searches with NVIDIA's compiler and
with OpenVINO's clock find.

- kernels, MB: started and moved by one call, batch 1, float16-typed, compute capability 8.6; "FP16": the float model;
- SQNR of the logits, top-1: onnxruntime, computed as the file is written;
- OpenVINO: processor time of a call over that of the file with all in INT8, one thread, all in turn in a new order
  every turn; the median over ``--builds`` builds of all engines, since two engines of one file differ by up to a
  seventh, as their memory lies; "all again", a second engine of that file, shows how far from 1 chance alone goes.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from int8 import installed, processor_ms
from printing import print_table

from hqp_lightning import export
from hqp_lightning.board.rtx import Compiled, compile_rtx
from hqp_lightning.export.engines import OpenVINOBackend
from hqp_lightning.export.forms import write_form
from hqp_lightning.export.latency import How
from hqp_lightning.export.logits import logits, noise
from hqp_lightning.export.paying import with_idle_additions
from hqp_lightning.shipping.known import Known
from hqp_lightning.shipping.placing import compiled_cost, fewer_kernels, less_time

PACKAGES = ("tensorrt-rtx", "openvino", "onnxruntime", "onnx")
HEADER = ("network", "placement", "layers in INT8", "kernels", "MB", "SQNR dB", "top-1", "OpenVINO")
_PART = 50


def rows(entry: str, args: argparse.Namespace, folder: Path) -> Iterator[Sequence[str]]:
    name, _, weights = entry.partition("=")
    torch.manual_seed(0)
    calibration, x, y = images(args)
    state = torch.load(weights, weights_only=True) if weights else None
    classes = args.classes if state is None else len(list(state.values())[-1])
    module = getattr(torchvision.models, name)(num_classes=classes).eval()
    if state is not None:
        module.load_state_dict(state)
    path = folder / "model.onnx"
    export.export_onnx(module, torch.from_numpy(x[:1]), path)
    paying = export.unprofitable(path)
    kinds: dict[str, tuple[str, ...]] = {"all": (), "paying": paying}
    files = {}
    for kind, left in kinds.items():
        ranges = export.collect_ranges(path, np.array_split(calibration, 8), threads=1, exclude=left)
        files[kind] = export.quantize(path, ranges, folder / f"{kind}.onnx", exclude=left).path
    layers = [p.node for p in export.placements(path) if p.weight_axis is not None]
    searched = [n for n in layers if n not in paying]
    if args.compiled:
        kinds["compiled"] = fewer_kernels(paying, searched, lambda left: compiled_cost(path, ranges, left, "8.6"))
    if args.timed:
        known = Known(folder / "placement.json", {})
        kinds["timed"] = less_time(str(path), ranges, paying, searched, How(), known)
        print((folder / "placement.json").read_text())
    for kind in list(kinds)[len(files) :]:
        left = with_idle_additions(path, kinds[kind])
        files[kind] = export.quantize(path, ranges, folder / f"{kind}.onnx", exclude=left).path

    made = {kind: compiled(file, folder) for kind, file in files.items()}
    ratios = openvino_ratios({**files, "all again": files["all"]}, x[:1], args)
    fp16, reference = compiled(path, folder), computed(path, x)
    top1 = "" if y is None else f"{(reference.argmax(1) == y).mean():.4f}"
    yield name, "FP16", "", str(fp16.kernels), f"{fp16.bytes_moved / 1e6:.1f}", "", top1, ""
    for kind, file in files.items():
        got, engine = computed(file, x), made[kind]
        decibels = "" if y is None else f"{-10 * np.log10(noise((got,), (reference,))):.1f}"
        top1 = "" if y is None else f"{(got.argmax(1) == y).mean():.4f}"
        counts = f"{engine.asked - len(engine.floats)} of {len(layers)}", str(engine.kernels)
        yield (
            name,
            kind,
            *counts,
            f"{engine.bytes_moved / 1e6:.1f}",
            decibels,
            top1,
            f"{ratios[kind]:.2f}",
        )
    yield name, "all again", "", "", "", "", "", f"{ratios['all again']:.2f}"


def openvino_ratios(files: Mapping[str, str], x: np.ndarray, args: argparse.Namespace) -> dict[str, float]:
    found: dict[str, list[float]] = {kind: [] for kind in files}
    order, generator = list(files), random.Random(0)
    for _ in range(args.builds):
        generator.shuffle(order)
        engines = {k: OpenVINOBackend().build(files[k], "int8", ".", threads=1) for k in order}
        times = processor_ms(engines, x, args.runs)
        for kind, engine in engines.items():
            found[kind].append(times[kind] / times["all"])
            engine.close()
    return {kind: float(np.median(ratios)) for kind, ratios in found.items()}


def images(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Those that calibrate and those that judge, with labels; or noise, which judges nothing."""
    if args.images is None:
        x = np.random.default_rng(0).normal(size=(16, 3, args.px, args.px)).astype(np.float32)
        return x, x, None
    with np.load(args.calibration) as first, np.load(args.images) as second:
        return first["images"], second["images"], second["labels"]


def compiled(file: str | Path, folder: Path) -> Compiled:
    return compile_rtx(write_form(file, "fp16", folder / "form.onnx"), folder / "form.engine", "8.6")


def computed(file: str | Path, x: np.ndarray) -> np.ndarray:
    model = onnx.load(file)
    return np.concatenate([logits(model, part, 1)[0] for part in np.array_split(x, -(-len(x) // _PART))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NETWORK[=STATE_DICT]")
    parser.add_argument("--px", type=int, default=128, help="of random images")
    parser.add_argument("--classes", type=int, default=10, help="of random weights")
    parser.add_argument("--calibration", help=".npz")
    parser.add_argument("--images", help=".npz")
    parser.add_argument("--runs", type=int, default=100, help="timed calls of each build")
    parser.add_argument("--builds", type=int, default=7)
    parser.add_argument("--compiled", action="store_true", help="search, too: a compilation for each try")
    parser.add_argument("--timed", action="store_true", help="search by time, too, and print what was measured")
    args = parser.parse_args()
    torch.set_num_threads(1)

    def tables() -> Iterator[Sequence[str]]:
        for entry in args.models:
            with tempfile.TemporaryDirectory() as folder:
                yield from rows(entry, args, Path(folder))

    print_table(", ".join(installed(PACKAGES)), HEADER, tables())


if __name__ == "__main__":
    main()
