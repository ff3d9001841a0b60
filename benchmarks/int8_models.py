"""The models that `benchmarks/int8.py` quantizes, each with its images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from compensation import compensated, scores
from efficientnet_lite import PUBLISHED
from photographs import TORCHVISION, TURNED, Prepared, batches_of, imagenet, photographs
from torch import nn
from trained import network

from hqp_lightning.core import compensation
from hqp_lightning.core.selection import propose
from hqp_lightning.surgery import Shadow

Images = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Model:
    """``weights`` as `trained.network` takes them; images that calibrate, images that judge, and their labels."""

    label: str
    network: str
    weights: str
    images: Images

    @property
    def module(self) -> nn.Module:
        """The float model."""
        return network(self.network, self.weights)


def models(args: argparse.Namespace, folder: Path) -> Iterator[Model]:
    """What the command line names; with ``--cut`` the one-shot pruned form of every state dict of ten classes, too."""

    @cache
    def of(classes: int, prepared: Prepared = TURNED if args.turned else TORCHVISION) -> Images:
        needed = args.data if classes == 10 else args.imagenet
        if needed is None:
            raise SystemExit(f"{classes} classes: give {'--data' if classes == 10 else '--imagenet'}")
        if classes == 10:
            return photographs(needed, args.px, args.calibration, args.images)
        return imagenet(needed, args.calibration, args.images, prepared)

    for entry in args.models:
        name, _, given = entry.partition("=")
        if not given:
            if name not in PUBLISHED:
                raise SystemExit(f"{entry!r}: NETWORK=FILE, or one of {', '.join(PUBLISHED)}")
            yield Model(name, name, "", of(1000, PUBLISHED[name]))
            continue
        if Path(given).is_dir():
            yield Model(f"{name} pruned", name, str(Path(given) / "pruned.ckpt"), of(10))
            continue
        classes = len(list(torch.load(given, weights_only=True).values())[-1])
        label = name if classes == 10 else f"{name}, {classes} classes"
        yield Model(label, name, given, of(classes))
        if args.cut and classes == 10:
            file = folder / f"{name}.pt"
            torch.save(one_shot(network(name, given), args), file)
            yield Model(f"{name} pruned", name, str(file), of(10))


def one_shot(dense: nn.Module, args: argparse.Namespace) -> nn.Module:
    """A share of the MACs cut at once by Fisher gates per MAC, the readers compensated: no training."""
    train, scoring, _ = batches_of(args.data, args.px, (256, 512, 64))
    shadow = Shadow(dense, [train[0][0][:2]])
    step = propose(shadow.groups(), scores(dense, shadow.groups(), scoring), args.cut * shadow.macs)
    return compensated(dense, shadow.cut(step.removed), train, compensation.STRENGTHS)[0]
