"""One pruning step from trace to ready to train, beside a batch of healing, in a process of its own.

    python benchmarks/whole_step.py resnet18 128 yes   # NETWORK, PX, whether compensation is on
    python benchmarks/whole_step.py resnet18 128 yes --fraction 0.4

Prints as JSON: processor seconds of the step and of one batch of 64 (forward, backward, AdamW, and a forward of the
teacher that healing follows), the MiB that the step needs beside what the process held before it, and the seconds of
its phases. A step of more than a quarter of the MACs is made in parts, those after the first by fresh scores. Linux.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
import torchvision
from memory import forget_peak, peak_mib
from torch import nn
from torch.nn import functional as F

from hqp_lightning.core.fisher import FisherState, compute, gate_fisher, merge
from hqp_lightning.core.selection import propose
from hqp_lightning.surgery import Cut, Shadow, apply_cut_, compensation, recalibrate_batchnorm_, slice_optimizers_, take
from hqp_lightning.surgery.readers import readers

IMAGES, BATCH, CORRECTING, SAMPLES, SHARE = 256, 64, 8, 512, 0.25  # as HQPPruning takes them
T = TypeVar("T")


def train(network: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    with torch.no_grad():
        wanted = teacher(x).softmax(1)
    optimizer.zero_grad()
    F.cross_entropy(network(x), wanted).backward()
    optimizer.step()


def scores(network: nn.Module, groups: Sequence, images: Sequence[torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The Fisher pass between two parts; labels are random, as the images are."""
    state = FisherState()
    for i in range(SAMPLES // BATCH):
        x, y = images[i % len(images)], torch.arange(BATCH) % 10
        loss = lambda x=x, y=y: F.cross_entropy(network(x), y, reduction="none")  # noqa: E731
        state = merge(state, gate_fisher(network, groups, loss))
    return compute(state)


def step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: list[torch.Tensor], compensate: bool, fraction: float
) -> dict[str, float]:
    spent: dict[str, float] = {}

    def clocked(phase: str, work: Callable[[], T]) -> T:
        started = time.process_time()
        found = work()
        spent[phase] = spent.get(phase, 0.0) + time.process_time() - started
        return found

    network.eval()
    undo = take(network, [optimizer])
    parts = math.ceil(fraction / SHARE - 1e-9)
    left = None
    for part in range(parts):
        shadow = clocked("trace", lambda: Shadow(network, [images[0][:2]]))
        left, groups = fraction * shadow.macs if left is None else left, clocked("trace", shadow.groups)
        if part:
            found = clocked("scores", lambda groups=groups: scores(network, groups, images))
        else:
            drawn = torch.Generator().manual_seed(0)
            found = {g.name: torch.rand(g.gates, generator=drawn) * g.macs_per_channel for g in groups}
        removed = propose(groups, found, left / (parts - part)).removed
        clocked("proof", lambda shadow=shadow, removed=removed: shadow.unprovable(removed))
        cut = clocked("proof", lambda shadow=shadow, removed=removed: shadow.cut(removed))
        left -= shadow.macs - cut.macs
        before = copy.deepcopy(network)
        gained = clocked("regression", lambda cut=cut: regressed(network, cut, images) if compensate else {})
        apply_cut_(network, cut)
        compensation.add_(network, gained)
        slice_optimizers_([optimizer], network, cut)
        norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
        batches = [(images[i % len(images)],) for i in range(CORRECTING)]
        correct = partial(recalibrate_batchnorm_, network, before, cut.kept, batches, norms)
        clocked("BatchNorm", correct)
    assert undo is not None  # it is kept until the step is judged
    return spent


def regressed(network: nn.Module, cut: Cut, images: Sequence[torch.Tensor]) -> dict:
    gained: dict = {}
    for part in compensation.parts(readers(network, cut)):
        with compensation.collecting(network, part) as seen:
            for x in images:
                seen.run((x,))
        gained |= seen.solve()
    return gained


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("network", help="of torchvision")
    parser.add_argument("px", type=int, help="side of the images")
    parser.add_argument("compensate", choices=("yes", "no"))
    parser.add_argument("--fraction", type=float, default=0.2, help="of the MACs")
    args = parser.parse_args()
    px, compensate = args.px, args.compensate == "yes"
    torch.manual_seed(0)
    network = getattr(torchvision.models, args.network)(num_classes=10).to(memory_format=torch.channels_last)
    teacher, optimizer = copy.deepcopy(network).eval(), torch.optim.AdamW(network.parameters(), 1e-3)
    images = [torch.randn(BATCH, 3, px, px) for _ in range(IMAGES // BATCH)]
    train(network, teacher, optimizer, images[0])  # warm
    started = time.process_time()
    train(network, teacher, optimizer, images[1])
    batch = time.process_time() - started
    forget_peak()
    started, before = time.process_time(), peak_mib()
    spent = step(network, optimizer, images, compensate, args.fraction)
    made = {"batch": batch, "step": time.process_time() - started, "memory": peak_mib() - before}
    print(json.dumps(made | {phase: round(seconds, 2) for phase, seconds in spent.items()}))


if __name__ == "__main__":
    main()
