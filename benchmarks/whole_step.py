"""One pruning step from trace to ready to train, beside a batch of healing, in a process of its own.

    python benchmarks/whole_step.py resnet18 128 yes   # NETWORK, PX, whether compensation is on

Prints as JSON: processor seconds of the step and of one batch of 64 (forward, backward, AdamW, and a forward of the
teacher that healing follows), and the MiB that the step needs beside what the process held before it. Linux.
"""

from __future__ import annotations

import argparse
import copy
import json
import time

import torch
import torchvision
from memory import forget_peak, peak_mib
from torch import nn
from torch.nn import functional as F

from hqp_lightning.core.selection import propose
from hqp_lightning.surgery import Shadow, apply_cut_, compensation, recalibrate_batchnorm_, slice_optimizers_, take
from hqp_lightning.surgery.readers import readers

IMAGES, BATCH, CORRECTING = 256, 64, 8  # as HQPPruning takes them
MACS = 0.2


def train(network: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    with torch.no_grad():
        wanted = teacher(x).softmax(1)
    optimizer.zero_grad()
    F.cross_entropy(network(x), wanted).backward()
    optimizer.step()


def step(network: nn.Module, optimizer: torch.optim.Optimizer, images: list[torch.Tensor], compensate: bool) -> None:
    network.eval()
    shadow = Shadow(network, [images[0][:2]])
    groups = shadow.groups()
    drawn = torch.Generator().manual_seed(0)
    values = {g.name: torch.rand(g.gates, generator=drawn) * g.macs_per_channel for g in groups}
    cut = shadow.cut(propose(groups, values, MACS * shadow.macs).removed)
    undo, before, gained = take(network, [optimizer]), copy.deepcopy(network), {}
    for part in compensation.parts(readers(network, cut)) if compensate else ():
        with compensation.collecting(network, part) as seen:
            for x in images:
                seen.run((x,))
        gained |= seen.solve()
    apply_cut_(network, cut)
    compensation.add_(network, gained)
    slice_optimizers_([optimizer], network, cut)
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    batches = [(images[i % len(images)],) for i in range(CORRECTING)]
    recalibrate_batchnorm_(network, before, cut.kept, batches, norms)
    assert undo is not None  # it is kept until the step is judged


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("network", help="of torchvision")
    parser.add_argument("px", type=int, help="side of the images")
    parser.add_argument("compensate", choices=("yes", "no"))
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
    step(network, optimizer, images, compensate)
    print(json.dumps({"batch": batch, "step": time.process_time() - started, "memory": peak_mib() - before}))


if __name__ == "__main__":
    main()
