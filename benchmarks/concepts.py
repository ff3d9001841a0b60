"""The figures of docs/how-it-works.md that explain a part of the method, from measurements.

    python benchmarks/concepts.py regression docs/figures --data DATA --weights resnet18.pth
    python benchmarks/concepts.py units docs/figures --look look.json --table latency_table.json
    python benchmarks/concepts.py staircase docs/figures

"regression": ResNet-18 loses the channels that are cheapest by 512 images, 40 % of its MACs; how much of what a layer
read of them its other inputs foretell, on images that made no regression. "units": what each gate and block costs and
saves, by a look and a latency table of one network. "staircase": time of an INT8 convolution (3x3, 512 inputs,
28 x 28) by its outputs, by OpenVINO's own counters, one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from compensation import scores
from figures import ROW, WIDTH, standalone
from matplotlib.axes import Axes
from photographs import batches_of
from torch import nn
from trained import network

from hqp_lightning.core.latency import Price
from hqp_lightning.core.selection import propose
from hqp_lightning.export.counters import openvino_counters
from hqp_lightning.export.latency import How, with_any_ranges
from hqp_lightning.export.onnx import export_onnx
from hqp_lightning.records import Look
from hqp_lightning.report.latency_table import read_table
from hqp_lightning.report.plots import INT8, KEPT, LOST, inline_svg
from hqp_lightning.report.schema import decode
from hqp_lightning.surgery import Shadow, compensation
from hqp_lightning.surgery.readers import Reader, readers, rows_of

CUT, IMAGES, POSITIONS = 0.4, 256, 16
TRACK = "#c5ccd6"
WIDTHS, SHAPE = range(4, 101, 4), (512, 28, 28)
KINDS = {"gate": ("gates", KEPT, "s"), "branch": ("blocks", LOST, "D")}


def main() -> None:
    """Measure and draw one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=("regression", "units", "staircase"))
    parser.add_argument("folder", type=Path, help="where the figure goes")
    parser.add_argument("--data", help="folder of imagenette2-160")
    parser.add_argument("--weights", help="of torchvision's ResNet-18")
    parser.add_argument("--look", type=Path, help="look.json of `hqp-look`")
    parser.add_argument("--table", type=Path, help="latency_table.json of a run of the same network")
    args = parser.parse_args()
    drawn = {"regression": regression, "units": units, "staircase": staircase}[args.figure](args)
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / f"{args.figure}.svg").write_text(standalone(drawn), encoding="utf-8")


def regression(args: argparse.Namespace) -> str:
    """Bars: the share of a removed contribution's variance that a layer's other inputs explain."""
    train, scoring, judging = batches_of(args.data, 128, (IMAGES, 512, IMAGES))
    dense = network("resnet18", args.weights)
    shadow = Shadow(dense, [train[0][0][:2]])
    groups = shadow.groups()
    cut = shadow.cut(propose(groups, scores(dense, groups, scoring), CUT * shadow.macs).removed)
    found, gained = readers(dense, cut), {}
    for part in compensation.parts(found):
        with compensation.collecting(dense, part) as seen:
            for x, _ in train:
                seen.run((x,))
        gained |= seen.solve()
    shares = {r.name: foretold(dense, r, gained, [x for x, _ in judging]) for r in found if r.windows}
    for name, share in shares.items():
        print(f"{name} {share:.2f}")

    def draw(axes: Axes) -> None:
        axes.barh(list(shares), [1.0] * len(shares), color=TRACK, height=0.66)
        bars = axes.barh(list(shares), list(shares.values()), color=KEPT, height=0.66)
        axes.bar_label(bars, [f"{s:.0%}" for s in shares.values()], padding=4, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05)
        bare(axes)

    label = "How much of what each layer of ResNet-18 read from removed channels its other inputs foretell"
    return inline_svg(lambda f: draw(f.add_subplot()), WIDTH, ROW * len(shares) + 0.2, "regression", label)


@torch.no_grad()
def foretold(dense: nn.Module, reader: Reader, gained: dict[str, torch.Tensor], images: list[torch.Tensor]) -> float:
    """1 - Var(removed - foretold) / Var(removed), over images, positions and outputs."""
    taken, weight = [], gained.get(f"{reader.name}.weight")
    layer = dense.get_submodule(reader.name)
    hook = layer.register_forward_pre_hook(lambda m, x: taken.extend(rows_of(m, True, x[0], POSITIONS, 0, 1 << 24)))
    for x in images:
        dense(x)
    hook.remove()
    kept, lost = reader.split(torch.cat([t.flatten(0, 1) for t in taken]))
    if weight is None:
        return 0.0
    left = lost - kept @ weight.reshape(len(kept), -1, kept.shape[2]).mT
    return float(1 - left.var(1).sum() / lost.var(1).sum())


def units(args: argparse.Namespace) -> str:
    """Dots: milliseconds that go with a part by itself, against the loss that it would cost."""
    look: Look = decode(json.loads(args.look.read_text(encoding="utf-8")), Look, "look")
    price = Price(read_table(args.table))
    dense = price.dense.widths
    points = []
    for part in look.parts:
        inside = [n for n in dense if n == part.name or n.startswith(f"{part.name}.")]
        if part.kind != "channels" and inside:
            saved = price.saved(dense, {n: w for n, w in dense.items() if n not in inside}, inside)
            points.append((part, saved))
            print(f"{part.kind} {part.name}: {part.loss:.4f} nats, {saved:.4f} ms of {price.dense_ms:.3f}")

    def draw(axes: Axes) -> None:
        for kind, (plural, colour, marker) in KINDS.items():
            of = [(p.loss, s) for p, s in points if p.kind == kind]
            axes.scatter(*zip(*of, strict=True), s=26, color=colour, marker=marker, label=plural)
        for k, (part, saved) in enumerate(sorted(points, key=lambda point: point[0].loss)):
            name = part.name.removeprefix("features.").partition(".")[0]
            axes.annotate(name, (part.loss, saved), (-3, (-12, 6)[k % 2]), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.set_ylim(0, 1.12 * max(saved for _, saved in points))
        axes.set_xlabel("predicted loss, nats")
        axes.set_ylabel("milliseconds that go with it")
        axes.legend(frameon=False)
        axes.patch.set_visible(False)

    label = f"Gates and blocks of {look.network}: predicted loss against the milliseconds that go with each"
    return inline_svg(lambda f: draw(f.add_subplot()), WIDTH, 3.6, "units", label)


def staircase(_: argparse.Namespace) -> str:
    """Steps: the time of one layer by its width."""
    how = How(placement="all")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for width in WIDTHS:
            layer = nn.Sequential(nn.Conv2d(SHAPE[0], width, 3, padding=1), nn.ReLU()).eval()
            path = export_onnx(layer, torch.randn(1, *SHAPE), Path(folder) / f"{width}.float.onnx").path
            files.append(with_any_ranges(path, Path(folder) / f"{width}.onnx", how))
        counted = openvino_counters(files, [np.full((1, *SHAPE), 0.1, np.float32)] * len(files))
    times = [max(ms for _, ms in nodes) for nodes in counted]  # beside it only layouts and the first quantizer
    for width, t in zip(WIDTHS, times, strict=True):
        print(f"{width} {t:.4f} ms")

    def draw(axes: Axes) -> None:
        axes.plot(list(WIDTHS), times, color=INT8, marker="o", markersize=3.5, linewidth=1, drawstyle="steps-pre")
        axes.set_xticks(range(0, max(WIDTHS) + 1, 16))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("output channels")
        axes.set_ylabel("ms")
        axes.patch.set_visible(False)

    label = "Time of an INT8 convolution on OpenVINO by its output channels: a staircase"
    return inline_svg(lambda f: draw(f.add_subplot()), WIDTH, 2.8, "staircase", label)


def bare(axes: Axes) -> None:
    """No axes around bars."""
    axes.patch.set_visible(False)
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="y", length=0)


if __name__ == "__main__":
    main()
