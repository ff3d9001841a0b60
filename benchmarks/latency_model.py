"""How near a latency table comes to whole networks that it has not seen: pruned ones, and without gates and branches.

    python benchmarks/latency_model.py --weights ../shared/weights       # both recipe networks, OpenVINO, one thread

The table is that of ``HQPPruning(cost="latency")``. The others are timed in turn, by processor time of single-threaded
calls; ranges fit nothing, which no time depends on.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from printing import print_table
from torch import nn

from hqp_lightning.core.calls import Call
from hqp_lightning.core.latency import Price
from hqp_lightning.export.latency import How
from hqp_lightning.loop.pricing import NETWORKS, drawn, made_here, without
from hqp_lightning.records import BRANCH, GATE
from hqp_lightning.surgery import Shadow

MODELS = ("resnet18", "mobilenet_v3_small")
HEADER = ("network", "structure", "measured ms", "predicted ms", "error", "table, CPU s")
ROUND_TO = 8


def structures(dense: nn.Module, shadow: Shadow) -> Iterator[tuple[str, nn.Module]]:
    """Networks that no table has seen."""
    draw = random.Random(1)
    for share in (0.75, 0.5):
        yield f"every width {share:.0%}", drawn(dense, shadow, _Fixed(share), ROUND_TO)
    for k in range(2):
        yield f"unseen {k + 1}", drawn(dense, shadow, draw, ROUND_TO, 0.25)
    gates = [u.key for u in shadow.units() if u.kind == GATE]
    branches = [u.key for u in shadow.units() if u.kind == BRANCH]
    chosen = {
        "no gates": gates,
        "two gates": gates[-3::2],
        "half of the branches": branches[::2],
        "no gates, half of the branches": [*gates, *branches[::2]],
    }
    for name, keys in chosen.items():
        if keys and (name != "no gates, half of the branches" or gates):
            twin, less = without(dense, shadow, keys)
            yield name, twin
            yield f"{name}, drawn", drawn(twin, less, draw, ROUND_TO, 0.4)
    twin, less = without(dense, shadow, [*gates, *branches[1:]])  # as far as searches go
    for k in range(2):
        yield f"no gates, one branch, unseen {k + 1}", drawn(twin, less, draw, ROUND_TO, 0.25)


class _Fixed(random.Random):
    def __init__(self, share: float) -> None:
        super().__init__(0)
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return self.share


def rows(name: str, args: argparse.Namespace) -> Iterator[Sequence[str]]:
    torch.manual_seed(0)
    dense, x = getattr(torchvision.models, name)(num_classes=10).eval(), torch.randn(2, 3, args.px, args.px)
    if args.weights is not None:
        dense.load_state_dict(torch.load(args.weights / f"{name}_imagenette128.pth", weights_only=True))
    shadow, call = Shadow(dense, [x]), Call((x[:1],))
    started = time.process_time()
    others = list(structures(dense, shadow))
    seconds = started - time.process_time()
    units = [u.key for u in shadow.units()]
    # in turn with the table's: machines drift
    everything = made_here(dense, call, shadow, ROUND_TO, How(), None, units, others)
    seconds += time.process_time() - started
    known = NETWORKS + 1
    price = Price(replace(everything, networks=everything.networks[:known]))
    for n in everything.networks[1:]:
        predicted = price.ms(n.widths)
        cost = f"{seconds:.0f}" if n.name == "dense" else ""
        yield name, n.name, f"{n.ms:.3f}", f"{predicted:.3f}", f"{predicted / n.ms - 1:+.1%}", cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--weights", type=Path, help="folder of MODEL_imagenette128.pth; random ones take as long")
    parser.add_argument("--px", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = f"{args.px} px, batch 1; INT8 on openvino; processor time"
    print_table(about, HEADER, (row for name in args.models for row in rows(name, args)))


if __name__ == "__main__":
    main()
