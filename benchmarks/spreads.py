"""Planted spreads of channels: what they cost in INT8, beside what the float network itself makes of any noise.

    python benchmarks/spreads.py --data DATA --seeds 3 mobilenet_v2 mobilenet_v3_large efficientnet_b0

A network of torchvision, trained for some batches of Imagenette. Then the channels in front of every depthwise
convolution and of the first linear layer are made uneven, by factors log-uniformly between 1 and 1/SPREAD (in the
BatchNorm before), and the weights that read them make up for it. Under ReLU the function stays; under hard-swish and
SiLU it is another one. SQNR of the logits in dB, as the INT8 file is written: with all layers in INT8 and with the
default placement. "40 dB in": of the float network's logits, with white noise of a hundredth of the input's size on it.
Each of all 64 images together / of the median image: a few on which a hardly trained network explodes decide the first.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from photographs import batches_of
from printing import print_table
from torch import nn

from hqp_lightning.export import collect_ranges, export_onnx, quantize, unprofitable
from hqp_lightning.export.logits import Logits, logits, noise


def trained(name: str, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], steps: int) -> nn.Module:
    """For so many batches, with BatchNorm's statistics of what came of it."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(num_classes=10)
    optimizer = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, max(steps, 1))
    for k in range(steps):
        x, y = batches[k % len(batches)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        schedule.step()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for x, _ in batches[:4]:
            net(x)
    return net.eval()


@torch.no_grad()
def planted(net: nn.Module, spread: float, seed: int) -> nn.Module:
    """A copy; modules follow each other in these networks in the order in which they are called."""
    net, draw = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]
    for norm, reader in zip(layers, layers[1:], strict=False):
        depthwise = isinstance(reader, nn.Conv2d) and reader.groups > 1
        if not isinstance(norm, nn.BatchNorm2d) or not (depthwise or isinstance(reader, nn.Linear)):
            continue
        factors = spread ** -torch.rand(norm.num_features, generator=draw)
        norm.weight.mul_(factors)
        norm.bias.mul_(factors)
        reader.weight.div_(factors[:, None, None, None] if depthwise else factors)
    return net


def decibels(found: Logits, reference: Logits) -> str:
    """Of all images together, and of the median one."""
    each = [noise(tuple(f[k] for f in found), tuple(r[k] for r in reference)) for k in range(len(found[0]))]
    return " / ".join(f"{-10 * np.log10(n):.1f}" for n in (noise(found, reference), np.median(each)))


def rows(args: argparse.Namespace, folder: Path) -> Iterator[Sequence[str]]:
    train, _, judged = batches_of(args.data, args.px, (640, 64, 64))
    calibration, x = train[0][0].numpy(), np.concatenate([part.numpy() for part, _ in judged])
    noisy = x + (0.01 * x.std() * np.random.default_rng(0).normal(size=x.shape)).astype(np.float32)
    source, target = folder / "float.onnx", folder / "int8.onnx"
    for name in args.networks:
        net = trained(name, train, args.steps)
        for spread in args.spreads:
            for seed in range(args.seeds if spread > 1 else 1):
                export_onnx(planted(net, spread, seed), torch.zeros(1, *x.shape[1:]), source)
                reference = logits(onnx.load(source), x, 1)
                found = [logits(onnx.load(source), noisy, 1)]
                for exclude in ((), unprofitable(source)):
                    ranges = collect_ranges(source, np.array_split(calibration, 4), threads=1, exclude=exclude)
                    quantize(source, ranges, target, exclude=exclude)
                    found.append(logits(onnx.load(target), x, 1))
                yield name, f"{spread:g}", str(seed), *(decibels(f, reference) for f in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="of torchvision")
    parser.add_argument("--data", required=True, help="folder that holds imagenette2-160")
    parser.add_argument("--spreads", nargs="+", type=float, default=[1.0, 1000.0])
    parser.add_argument("--seeds", type=int, default=1, help="of the factors")
    parser.add_argument("--steps", type=int, default=40, help="of training; 0: random weights")
    parser.add_argument("--px", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    header = ("network", "spread", "seed", "40 dB in", "all in INT8", "where it pays")
    with tempfile.TemporaryDirectory() as folder:
        print_table(f"{args.steps} batches of training, {args.px} px", header, rows(args, Path(folder)))


if __name__ == "__main__":
    main()
