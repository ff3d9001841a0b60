"""What compensation gives back after one cut, with no training: top-1, by the MACs that the cut removes.

    python benchmarks/compensation.py --data DATA --weights mobilenet_v3_small=mv3.pth --cuts 0.39 0.49
    python benchmarks/compensation.py --data DATA --weights resnet18=r18.pth --cuts 0.2 0.38 --images 1000

Fisher gates per MAC of 512 validation images choose the channels; training images compensate and correct
BatchNorm; other validation images judge. "plain" is the cut alone, "BatchNorm" with its statistics corrected,
"compensated" with the readers' ridge regression and the old statistics shifted, "both" with both. "λ" counts the layers
by the strength that was chosen ("inf" is the plain cut); with ``--strengths``, further rows have one for all layers.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import Counter
from functools import partial

import torch
from photographs import batches_of
from printing import print_table
from torch import nn
from torch.nn import functional as F
from trained import network

from hqp_lightning.core import compensation as core
from hqp_lightning.core.fisher import FisherState, compute, gate_fisher, merge
from hqp_lightning.core.saliency import saliency
from hqp_lightning.core.selection import propose
from hqp_lightning.surgery import Shadow, apply_cut_, compensation, recalibrate_batchnorm_
from hqp_lightning.surgery.readers import readers

HEADER = ("network", "MACs removed", "plain", "BatchNorm", "compensated", "both", "λ: layers", "seconds (CPU)")


def top1(model, data):
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data)
    return right / sum(len(y) for _, y in data)


def scores(model, groups, data):
    state = FisherState()
    for x, y in data:
        losses = partial(F.cross_entropy, target=y, reduction="none")
        state = merge(state, gate_fisher(model, groups, lambda x=x, losses=losses: losses(model(x))))
    return saliency(compute(state), groups)


def carry_(model, dense, cut, data):
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    recalibrate_batchnorm_(model, dense, cut.kept, [(x,) for x, _ in data], norms)


def compensated(dense, cut, data, strengths):
    """A cut copy, the λ of its layers, and processor seconds."""
    started, model, chosen, gained = time.process_time(), copy.deepcopy(dense), Counter(), {}
    for part in compensation.parts(readers(model, cut)):
        with compensation.collecting(model, part) as seen:
            for x, _ in data:
                seen.run((x,))
        gained |= seen.solve(strengths)
        chosen.update(seen.strengths.values())
    apply_cut_(model, cut)
    compensation.add_(model, gained)
    return model, chosen, time.process_time() - started


def row(name, weights, fraction, data, args):
    train, scoring, judging = data
    dense = network(name, weights)
    shadow = Shadow(dense, [train[0][0][:2]])
    groups = shadow.groups()
    step = propose(groups, scores(dense, groups, scoring), fraction * shadow.macs)
    before, cut = shadow.macs, shadow.cut(step.removed)
    found = [f"{1 - cut.macs / before:.1%}"]
    plain = copy.deepcopy(dense)
    apply_cut_(plain, cut)
    found.append(f"{top1(plain, judging):.4f}")
    carry_(plain, dense, cut, train)
    found.append(f"{top1(plain, judging):.4f}")
    for grid in [core.STRENGTHS, *([s] for s in args.strengths)]:
        model, chosen, seconds = compensated(dense, cut, train, grid)
        alone = top1(model, judging)
        carry_(model, dense, cut, train)
        both = top1(model, judging)
        layers = " ".join(f"{s:g}: {n}" for s, n in sorted(chosen.items()))
        yield (f"{name} ({top1(dense, judging):.4f})", *found, f"{alone:.4f}", f"{both:.4f}", layers, f"{seconds:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds imagenette2-160")
    parser.add_argument("--weights", required=True, nargs="+", metavar="NETWORK=FILE", help="state dicts, ten classes")
    parser.add_argument("--cuts", type=float, nargs="+", default=[0.2, 0.38])
    parser.add_argument("--strengths", type=float, nargs="*", default=[])
    parser.add_argument("--training", type=int, default=256)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = batches_of(args.data, args.px, (args.training, 512, args.images))
    entries = [entry.partition("=")[::2] for entry in args.weights]
    rows = (r for name, file in entries for cut in args.cuts for r in row(name, file, cut, data, args))
    print_table(f"{args.px} px; {args.training} images compensate, {args.images} judge", HEADER, rows)


if __name__ == "__main__":
    main()
