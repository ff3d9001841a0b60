"""What a look foretells, held against what the loss then did: one cut, no healing, nothing that makes up for it.

    python benchmarks/look.py --data DATA --weights mobilenet_v3_small=mv3.pth --parts
    python benchmarks/look.py --data DATA --weights resnet18=r18.pth --parts --images 500

Half the sum of the removed Fisher values of 512 validation images foretells; ``--images`` of the other half of the
validation images measure the loss of the network that was cut. With ``--parts`` each group alone loses the cheaper half
of its channels, and the rank correlation over the groups is told as well.
"""

from __future__ import annotations

import argparse
import copy

import torch
from printing import print_table
from torch import nn
from torch.nn import functional as F
from trained import network

from hqp_lightning.core.fisher import FisherState, compute, gate_fisher, merge
from hqp_lightning.core.saliency import saliency
from hqp_lightning.core.selection import Caps, propose
from hqp_lightning.data import ImagenetteDataModule
from hqp_lightning.loop.spreading import spread
from hqp_lightning.surgery import Shadow, apply_cut_

HEADER = ("cut", "MACs removed", "foretold, nats", "measured, nats", "measured over foretold")


def loss_of(model: nn.Module, batches: list) -> float:
    with torch.no_grad():
        total = sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in batches)
    return total / sum(len(y) for _, y in batches)


def fisher_of(model: nn.Module, shadow: Shadow, batches: list) -> dict[str, torch.Tensor]:
    state = FisherState()
    for x, y in batches:
        loss = lambda x=x, y=y: F.cross_entropy(model(x), y, reduction="none")  # noqa: E731
        state = merge(state, gate_fisher(model, shadow.groups(), loss))
    return saliency(compute(state), shadow.groups())


def spearman(pairs: list[tuple[float, float]]) -> float:
    ranks = torch.tensor(pairs).argsort(0).argsort(0).double()
    return float(torch.corrcoef(ranks.T)[0, 1])


def rows(args: argparse.Namespace, pairs: dict[str, list]) -> object:
    data = ImagenetteDataModule(args.data, image_size=128, batch_size=64, cache=False)
    data.setup("validate")
    scoring = list(spread(data.val_dataloader(), 512))
    judging = list(spread(data.test_dataloader(), args.images))
    name, _, file = args.weights.partition("=")
    dense = network(name, file)
    shadow = Shadow(dense, [scoring[0][0][:2]])
    worth, before = fisher_of(dense, shadow, scoring), loss_of(dense, judging)
    groups = {g.name: g for g in shadow.groups()}

    def one(kind: str, title: str, removed: dict, foretold: float) -> tuple[str, ...]:
        cut, pruned = shadow.cut(removed), copy.deepcopy(dense)
        apply_cut_(pruned, cut)
        rise = loss_of(pruned.eval(), judging) - before
        ratio = f"{rise / foretold:.1f}" if foretold > 1e-3 else "-"  # of next to nothing it says nothing
        pairs.setdefault(kind, []).append((foretold, rise))
        return title, f"{1 - cut.macs / shadow.macs:.1%}", f"{foretold:.4f}", f"{rise:.4f}", ratio

    for level in args.levels:
        step = propose(list(groups.values()), worth, level * shadow.macs, Caps())
        yield one("levels", "all groups", dict(step.removed), step.predicted_loss_increase)
    for n, g in groups.items() if args.parts else ():
        half = sorted(worth[n].argsort()[: g.gates // 2].tolist())
        channels = tuple(sorted(c + b * g.gates for c in half for b in range(g.blocks)))
        yield one("groups", n, {n: channels}, float(worth[n][half].sum()) / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds imagenette2-160")
    parser.add_argument("--weights", required=True, metavar="NETWORK=FILE", help="a state dict, ten classes")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--parts", action="store_true", help="each group alone, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs: dict[str, list] = {}
    print_table(f"{args.weights.partition('=')[0]}, {args.images} images judge", HEADER, rows(args, pairs))
    for kind, found in pairs.items():
        print(f"\nSpearman over the {len(found)} {kind}: {spearman(found):.2f}")


if __name__ == "__main__":
    main()
