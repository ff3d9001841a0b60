"""Recovery on images without labels: steps learned, the float network as teacher; top-1 and SQNR before and after.

    python benchmarks/recovery.py --imagenet FOLDER --turned mobilenet_v3_small=imagenet.pth

A few passes over the calibration images with `fake_quantized`, the loss is `soft_loss` to the float network alone. All
layers in INT8; the same network is quantized before, and after with the ranges calibrated again.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from photographs import TORCHVISION, TURNED, imagenet
from printing import print_table
from trained import network

from hqp_lightning.export import collect_ranges, export_onnx, input_ranges, quantize
from hqp_lightning.export.logits import logits, noise
from hqp_lightning.shipping.teaching import soft_loss
from hqp_lightning.surgery import fake_quantized


def rows(args, folder):
    name, _, weights = args.model.partition("=")
    calibration, x, y = imagenet(args.imagenet, args.calibration, args.images, TURNED if args.turned else TORCHVISION)
    net, example = network(name, weights), torch.from_numpy(calibration[:1])
    teacher = copy.deepcopy(net).requires_grad_(False)
    source, target = folder / "float.onnx", folder / "int8.onnx"
    export_onnx(net, example, source)
    (reference,) = logits(onnx.load(source), x, args.threads)

    def calibrated():
        return collect_ranges(source, np.array_split(calibration, len(calibration) // 16), threads=args.threads)

    def row(label, ranges, seconds=""):
        quantize(source, ranges, target)
        (found,) = logits(onnx.load(target), x, args.threads)
        top1 = (found.argmax(1) == y).mean()
        return label, f"{top1:.4f}", f"{-10 * np.log10(noise((found,), (reference,))):.1f}", seconds

    yield "float", f"{(reference.argmax(1) == y).mean():.4f}", "", ""
    before = calibrated()
    yield row("calibrated", before)
    ranges = input_ranges(source, target, net, example, before)
    started = time.process_time()
    passes = torch.utils.data.DataLoader(torch.from_numpy(calibration), 16, shuffle=True)
    torch.manual_seed(0)
    with fake_quantized(net.train(), ranges) as steps:
        optimizer = torch.optim.Adam([*net.parameters(), *steps.values()], args.lr)
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, args.epochs * len(passes))
        for _ in range(args.epochs):
            for part in passes:
                optimizer.zero_grad()
                soft_loss(net(part), teacher(part)).backward()
                optimizer.step()
                falling.step()
    seconds = f"{time.process_time() - started:.0f}"
    export_onnx(net.eval(), example, source)
    yield row("recovered, calibrated again", calibrated(), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="NETWORK=STATE_DICT")
    parser.add_argument("--imagenet", required=True, help="folder with calibration/ and test/")
    parser.add_argument("--turned", action="store_true", help="these scaled to [-1, 1] and turned by 180 degrees")
    parser.add_argument("--calibration", type=int, default=128, help="images that train, at most")
    parser.add_argument("--images", type=int, default=400, help="images that judge")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        about = f"{args.calibration} images train, {args.epochs} epochs, Adam {args.lr:g}; {args.images} judge"
        print_table(about, ("INT8 of all layers", "top-1", "SQNR dB", "CPU seconds"), rows(args, Path(folder)))


if __name__ == "__main__":
    main()
