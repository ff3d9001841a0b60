"""A small network with everything that can go as a whole: squeeze-excite in three places, two residual blocks."""

import torch
from classifier import Classifier, Scripted
from networks import draw_norms_
from torch import nn


class Gate(nn.Module):
    """Squeeze-excite under a name that says nothing."""

    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(channels, 8, 1), nn.ReLU(), nn.Conv2d(8, channels, 1), nn.Sigmoid())

    def scale(self, x):
        return self.mix(x.mean((2, 3), keepdim=True))

    def forward(self, x):
        return x * self.scale(x)


class Block(nn.Module):
    """``x + f(x)``, with a gate where ``f`` ends (its writer takes the mean) or before its last layer (the reader)."""

    def __init__(self, channels, last):
        super().__init__()
        first = [nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        second = [nn.Conv2d(16, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.body = nn.Sequential(*first, *second, Gate(channels)) if last else nn.Sequential(*first, Gate(16), *second)

    def forward(self, x):
        return x + self.body(x)


def gated_net():
    """Units: gates ``3`` (a ReLU between it and its reader), ``5.body.3`` and ``6.body.5``; branches ``5``, ``6``."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Gate(16),
        nn.Hardtanh(0, 0.6),
        Block(16, last=False),
        Block(16, last=True),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


GATES, BRANCHES = ("3", "5.body.3", "6.body.5"), ("5", "6")
UNITS = (*(f"gate:{n}" for n in GATES), *(f"branch:{n}" for n in BRANCHES))
ALL = ("channels", "gates", "branches")


def drawn(seed=0):
    """The network in eval mode, random but for the seed."""
    torch.manual_seed(seed)
    network = gated_net()
    draw_norms_(network)
    return network.eval()


class GatedClassifier(Classifier):
    """A user's module around it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.net = gated_net()


class GatedScripted(Scripted):
    """The same, with scores given."""

    def __init__(self, scores, **kwargs):
        super().__init__(scores, **kwargs)
        self.net = gated_net()
