"""What gates and residual blocks cost and buy when they go as a whole, with no training: the cheapest first.

    python benchmarks/units.py --data DATA --weights mobilenet_v3_small=mv3.pth --kinds gate --removed 0 5 9

512 validation images give every unit its Fisher value, in one pass; training images give the gates' means, correct
BatchNorm, teach the layers that read a unit to take over, and calibrate INT8; other validation images judge. Times are
processor time of a call of an OpenVINO engine, batch 1, one thread: every engine in turn, the median of ``--runs``.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from photographs import batches_of
from printing import print_table
from torch import nn
from torch.nn import functional as F
from trained import network

from hqp_lightning.core.branches import as_tried, loss_rises
from hqp_lightning.core.fisher import FisherState, compute, gate_fisher, merge
from hqp_lightning.export import collect_ranges, export_onnx, quantize
from hqp_lightning.export.engines import OpenVINOBackend
from hqp_lightning.records import BRANCH, GATE
from hqp_lightning.surgery import Shadow, layer_macs, recalibrate_batchnorm_
from hqp_lightning.surgery.compensation import add_
from hqp_lightning.surgery.folding import remove_
from hqp_lightning.surgery.means import watching
from hqp_lightning.surgery.succession import beside, successors

HEADER = (
    "units removed",
    "½ΣF, nats",
    "top-1, float",
    "corrected",
    "taken over",
    "INT8",
    "MACs",
    "float, ms",
    "INT8, ms",
    "speedup",
)


def values(model: nn.Module, shadow: Shadow, data: Sequence, tried: bool) -> dict[str, float]:
    """Half the Fisher value of every unit; ``tried``: of branches as a search ranks them."""
    state, rises = FisherState(), FisherState()
    branches = [u for u in shadow.units() if u.kind == BRANCH]
    for x, y in data:
        loss = lambda x=x, y=y: F.cross_entropy(model(x), y, reduction="none")  # noqa: E731
        state = merge(state, gate_fisher(model, [], loss, shadow.units()))
        rises = merge(rises, loss_rises(model, branches, loss)) if tried else rises
    return {n: float(f) / 2 for n, f in as_tried(compute(state), rises).items()}


def top1(function, data: Sequence) -> float:
    with torch.no_grad():
        right = sum(int((torch.as_tensor(function(x)).argmax(1) == y).sum()) for x, y in data)
    return right / sum(len(y) for _, y in data)


def without(dense: nn.Module, shadow: Shadow, keys: Sequence[str], means: dict, train: Sequence) -> tuple:
    """The network without these units; with BatchNorm's statistics corrected; and before that taken over by readers."""
    plain, removals = copy.deepcopy(dense), shadow.without(keys).removals
    for removal in removals:
        remove_(plain, removal, means.get(removal.unit.name))
    corrected, fitted = copy.deepcopy(plain), copy.deepcopy(plain)
    norms = [n for n, m in plain.named_modules() if isinstance(m, nn.BatchNorm2d)]
    if keys:
        recalibrate_batchnorm_(corrected, dense, {}, [(x,) for x, _ in train], norms)
        for one in successors(fitted, [r.unit.name for r in removals], (train[0][0],)):
            with beside(fitted, dense, one) as seen:
                for x, _ in train:
                    seen.run((x,))
            add_(fitted, seen.solve())
        recalibrate_batchnorm_(fitted, dense, {}, [(x,) for x, _ in train], norms)
    return plain, corrected, fitted


def engines(model: nn.Module, train: Sequence, folder: Path, name: str) -> tuple:
    """The float engine and the INT8 one."""
    paths = folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
    export_onnx(model, train[0][0][:1], paths[0])
    quantize(paths[0], collect_ranges(paths[0], (x.numpy() for x, _ in train)), paths[1])
    backend = OpenVINOBackend()
    return tuple(backend.build(p, t, folder, threads=1) for p, t in zip(paths, ("fp32", "int8"), strict=True))


def milliseconds(built: Sequence, image: np.ndarray, runs: int) -> list[float]:
    """Median processor time of a call; the engines take turns."""
    spent: list[list[float]] = [[] for _ in built]
    for i in range(runs + 10):
        for engine, own in zip(built, spent, strict=True):
            started = time.process_time()
            engine.run(image)
            own.append((time.process_time() - started) * 1e3 if i >= 10 else float("nan"))
    return [float(np.nanmedian(own)) for own in spent]


def rows(args: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    train, scoring, judging = batches_of(args.data, args.px, (args.training, 512, args.images))
    name, _, file = args.weights.partition("=")
    dense = network(name, file)
    shadow = Shadow(dense, [train[0][0][:2]])
    with watching(dense, [u.name for u in shadow.units() if u.kind == GATE]) as found:
        for x, _ in train:
            dense(x)
    means = found.compute()
    worth = values(dense, shadow, scoring, args.by == "tried")
    order = sorted((k for k in worth if k.partition(":")[0] in args.kinds), key=worth.__getitem__)
    cells, built = [], []
    with tempfile.TemporaryDirectory() as folder:
        for count in args.removed:
            keys = order[:count]
            plain, corrected, fitted = without(dense, shadow, keys, means, train)
            pair = engines(fitted, train, Path(folder), str(count))
            built += pair
            names = " ".join(k.partition(":")[2].replace("features.", "") for k in keys) or "none"
            macs = sum(layer_macs(fitted, [train[0][0][:1]])[0].values()) / 1e6
            scores = (
                top1(plain, judging),
                top1(corrected, judging),
                top1(fitted, judging),
                top1(lambda x, e=pair[1]: e.run(x.numpy()), judging),
            )
            cells.append(
                (f"{len(keys)}: {names}", f"{sum(map(worth.__getitem__, keys)):.4f}", *(f"{s:.4f}" for s in scores))
                + (f"{macs:.1f} M",)
            )
        times = milliseconds(built, train[0][0][:1].numpy(), args.runs)
        for i, row in enumerate(cells):
            single, integer = times[2 * i], times[2 * i + 1]
            yield (*row, f"{single:.3f}", f"{integer:.3f}", f"{times[0] / integer:.2f}x")
        for engine in built:
            engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds imagenette2-160")
    parser.add_argument("--weights", required=True, metavar="NETWORK=FILE", help="a state dict, ten classes")
    parser.add_argument("--kinds", nargs="+", default=["gate"], help="gate, branch")
    parser.add_argument("--by", choices=("fisher", "tried"), default="tried", help="what ranks the blocks")
    parser.add_argument("--removed", type=int, nargs="+", default=[0, 5, 9])
    for name, default in {"training": 256, "px": 128, "images": 1500, "runs": 400}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_table(f"{args.px} px; {args.images} images judge", HEADER, rows(args))


if __name__ == "__main__":
    main()
