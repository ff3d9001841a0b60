"""Random networks out of what people build classifiers from; a list of plain values describes each one.

A network is a chain of blocks, drawn by hypothesis. Every block takes ``(N, C, H, W)`` and returns such a tensor.
Widths are mostly multiples of eight, and statistics of BatchNorm are not the identity.
"""

import math

import torch
from hypothesis import strategies as st
from networks import draw_norms_
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "prelu": lambda: nn.PReLU(init=0.2),
}
NORMS = ("batch", "batch", "none", "group", "layer")


class ChannelsFirstLayerNorm(nn.LayerNorm):
    """As in ConvNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm(kind: str, width: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(width)
    if kind == "group":
        return nn.GroupNorm(math.gcd(4, width), width)
    return ChannelsFirstLayerNorm(width) if kind == "layer" else nn.Identity()


class Plain(nn.Sequential):
    """Convolution, norm, activation."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, groups: int, kind: str, act: str):
        bias = kind != "batch"
        conv = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        super().__init__(conv, norm(kind, out), ACTIVATIONS[act]())


class Depthwise(nn.Sequential):
    """Depthwise 3x3 and pointwise convolution."""

    def __init__(self, width: int, out: int, stride: int, act: str):
        super().__init__(
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width), ACTIVATIONS[act](),
            nn.Conv2d(width, out, 1), ACTIVATIONS[act](),
        )  # fmt: skip


class Residual(nn.Module):
    """Two convolutions beside the identity, with an optional gate over channels and a norm behind the sum."""

    def __init__(self, width: int, hidden: int, act: str, gated: bool, kind: str):
        super().__init__()
        self.first = Plain(width, hidden, 3, 1, 1, "batch", act)
        self.second = nn.Sequential(nn.Conv2d(hidden, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        self.gate = SqueezeExcite(width) if gated else nn.Identity()
        self.norm, self.act = norm(kind, width), ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x + self.gate(self.second(self.first(x)))))


class Downsample(nn.Module):
    """A residual block whose shortcut is a 1x1 convolution."""

    def __init__(self, width: int, out: int, act: str):
        super().__init__()
        self.body = nn.Sequential(
            Plain(width, out, 3, 2, 1, "batch", act), nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out)
        )
        self.short, self.act = nn.Conv2d(width, out, 1, 2), ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.short(x))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class Branches(nn.Module):
    """Two branches, concatenated; the input may be a third."""

    def __init__(self, width: int, out: int, act: str, dense: bool):
        super().__init__()
        self.left, self.right = Plain(width, out, 1, 1, 1, "batch", act), Plain(width, out, 3, 1, 1, "none", act)
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x), *([x] if self.dense else [])], 1)


class Split(nn.Module):
    """Parts of the channels go different ways (C2f); ``shares`` says how many eights go left."""

    def __init__(self, width: int, left: int, act: str, how: str):
        super().__init__()
        self.sizes, self.how = (left, width - left), how
        self.left, self.right = Plain(left, left, 3, 1, 1, "batch", act), Plain(width - left, 16, 1, 1, 1, "none", act)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "split":
            a, b = torch.split(x, self.sizes, 1)
        elif self.how == "chunk":
            a, b = x.chunk(2, 1)
        else:
            a, b = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        return torch.cat([self.left(a), self.right(b)], 1)


class Gated(nn.Module):
    """A gated linear unit: the halves of a convolution's output are multiplied."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.both = nn.Conv2d(width, 2 * out, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, 1)
        return a * torch.sigmoid(b)


class Shared(nn.Module):
    """One convolution called twice."""

    def __init__(self, width: int, act: str):
        super().__init__()
        self.conv, self.act = nn.Conv2d(width, width, 3, 1, 1), ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(self.act(self.conv(x))))


class Shuffle(nn.Module):
    """A channel shuffle: a permutation in a view."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Network(nn.Module):
    """The chain, between a first convolution for each input and a head."""

    def __init__(self, blocks: list[nn.Module], width: int, stem: int, inputs: int, head: str, size: int):
        super().__init__()
        self.stem = nn.ModuleList(nn.Conv2d(3 - 2 * k, stem, 3, 1, 1) for k in range(inputs))
        self.blocks = nn.Sequential(*blocks)
        flat = {"pool": width, "flat": width * size * size, "mlp": width, "last": width * size * size}[head]
        hidden = 24 if head == "mlp" else flat
        self.hidden = nn.Linear(flat, hidden) if head == "mlp" else nn.Identity()
        self.kind, self.fc = head, nn.Linear(hidden, 5)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        x = self.stem[0](x)
        for layer, other in zip(list(self.stem)[1:], more, strict=True):
            x = x + layer(other)
        x = self.blocks(x)
        if self.kind == "last":
            return self.fc(x.permute(0, 2, 3, 1).flatten(1))
        x = x.flatten(1) if self.kind == "flat" else F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(F.relu(self.hidden(x)))


@st.composite
def networks(draw, blocks=4, inputs=2):
    """A network in eval mode and its example inputs: two samples of 8x8 pixels."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    widths, acts = st.sampled_from([16, 24, 32]), st.sampled_from(sorted(ACTIVATIONS))
    stem = width = draw(widths)
    size, chain = 8, []
    for _ in range(draw(st.integers(1, blocks))):
        kind = draw(st.sampled_from([
            "plain", "grouped", "depthwise", "residual", "downsample", "branches", "split", "gated", "shared",
            "shuffle", "pool", "gate",
        ]))  # fmt: skip
        out, act = draw(widths), draw(acts)
        stride = draw(st.sampled_from([1, 2])) if size > 2 else 1
        if kind == "plain":
            chain.append(Plain(width, out, draw(st.sampled_from([1, 3])), stride, 1, draw(st.sampled_from(NORMS)), act))
            size, width = size // stride, out
        elif kind == "grouped":
            chain.append(Plain(width, out, 3, 1, draw(st.sampled_from([2, 4])), "batch", act))
            width = out
        elif kind == "depthwise":
            chain.append(Depthwise(width, out, stride, act))
            size, width = size // stride, out
        elif kind == "residual":
            chain.append(Residual(width, out, act, draw(st.booleans()), draw(st.sampled_from(NORMS))))
        elif kind == "downsample" and size > 2:
            chain.append(Downsample(width, out, act))
            size, width = size // 2, out
        elif kind == "branches":
            dense = draw(st.booleans())
            chain.append(Branches(width, out, act, dense))
            width = 2 * out + (width if dense else 0)
        elif kind == "split":
            how = draw(st.sampled_from(["split", "chunk", "slice"]))
            left = 8 if how == "split" else width // 2
            chain.append(Split(width, left, act, how))
            width = left + 16
        elif kind == "gated":
            chain.append(Gated(width, out))
            width = out
        elif kind == "shared":
            chain.append(Shared(width, act))
        elif kind == "shuffle":
            chain.append(Shuffle(draw(st.sampled_from([2, 4]))))
        elif kind == "gate":
            chain.append(SqueezeExcite(width))
        elif kind == "pool" and size > 2:
            chain.append(draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))(2))
            size //= 2
    count = draw(st.integers(1, inputs))
    # A permutation in front of a flattening costs the outside graph's own walk too much; ours is tested by itself.
    heads = ["pool", "mlp"] if any(isinstance(m, Shuffle) for m in chain) else ["pool", "flat", "mlp", "last"]
    network = Network(chain, width, stem, count, draw(st.sampled_from(heads)), size)
    draw_norms_(network)
    return network.eval(), tuple(torch.randn(2, 3 - 2 * k, 8, 8) for k in range(count))
