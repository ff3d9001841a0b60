"""The layers that read channels which a cut removes, and what they read: rows of inputs, sampled and unfolded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqp_lightning.surgery.cut import Cut

__all__ = ["Reader", "changed", "fitting", "readers", "rows_of"]

WIDEST = 4608
"""Inputs times offsets up to which a convolution's windows are unfolded: 512 channels of a 3x3 kernel."""
_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Reader:
    """A layer whose weight loses inputs by a cut.

    Attributes:
        name: qualified name.
        windows: whether its rows are whole windows, one column for each offset of the kernel and input. Else they are
            the inputs at one position, one regression for all offsets.
        kept: inputs that stay, ``(blocks, inputs)``, as channels of what the layer is given.
        lost: inputs that go, ``(blocks, inputs)``.
        weight: of the columns that go, ``(blocks, columns, outputs)``; without windows an output for each offset.
        shape: of the layer's weight after the cut.
    """

    name: str
    windows: bool
    kept: Tensor
    lost: Tensor
    weight: Tensor
    shape: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Blocks, and in each of them the columns that stay, and outputs."""
        offsets = math.prod(self.shape[2:]) if self.windows else 1
        return len(self.kept), self.kept.shape[1] * offsets, self.weight.shape[2]

    def as_weight(self, gained: Tensor) -> Tensor:
        """Gained weights ``(blocks, outputs, columns)`` in the shape of the layer's weight."""
        outputs, inputs, *kernel = self.shape
        return gained.reshape(outputs, math.prod(kernel), inputs).transpose(1, 2).reshape(self.shape)

    def as_bias(self, shift: Tensor) -> Tensor:
        """A gained mean ``(blocks, outputs)`` in the shape of the layer's bias."""
        return shift.reshape(self.shape[0], -1).sum(1)


def readers(network: nn.Module, cut: Cut) -> list[Reader]:
    """The readers of what ``cut`` removes, in the order of ``network``, which is not cut yet.

    Left alone are layers with a forward of their own, whose outputs need not be linear in what they read; layers that
    have their weight from a parametrization; weights that several layers hold; and linear layers of more than twice
    `WIDEST` inputs, whose moments would take gigabytes.
    """
    found = []
    for name, layer in fitting(network).items():
        weight, index = layer.get_parameter("weight"), cut.kept.get(f"{name}.weight" if name else "weight")
        if index is not None and index.shape[1] < weight.shape[1]:
            reader = _reader(name, layer, weight, index)
            found += [reader] if reader is not None else []
    return found


def fitting(network: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights can be fitted, by name: stock ones, with a weight of their own alone."""
    modules = dict(network.named_modules())
    holders: dict[int, int] = {}
    for m in modules.values():
        for p in m._parameters.values():
            holders[id(p)] = holders.get(id(p), 0) + 1
    found = {}
    for name, layer in modules.items():
        weight = layer._parameters.get("weight")
        stock = any(type(layer).forward is k.forward and isinstance(layer, k) for k in _KINDS)
        # the moments of a wide linear layer would take gigabytes
        narrow = not isinstance(layer, nn.Linear) or layer.in_features <= 2 * WIDEST
        if stock and weight is not None and holders[id(weight)] == 1 and narrow:
            found[name] = layer
    return found


def changed(name: str, before: nn.Module, after: nn.Module) -> Reader:
    """A layer as a reader of all it reads, which loses what it gave before less what it gives now.

    Its rows are those of ``torch.cat([x, x0])`` along the channels, with *x* what it reads now and *x0* what it read.

    Args:
        name: of the layer.
        before: as it was.
        after: as it is.
    """
    weight, blocks = after.get_parameter("weight"), int(getattr(after, "groups", 1))
    inputs, offsets = weight.shape[1], weight[0, 0].numel()
    windows = isinstance(after, nn.Linear) or isinstance(after, nn.Conv2d) and inputs * offsets <= WIDEST
    flat = torch.cat([-weight.detach(), before.get_parameter("weight").detach().to(weight)], 1)
    flat = flat.to(torch.promote_types(weight.dtype, torch.float32)).view(blocks, -1, 2 * inputs, offsets)
    flat = flat.transpose(2, 3)
    taken = flat.flatten(2) if windows else flat.flatten(1, 2)
    kept = torch.arange(blocks * inputs, device=weight.device).view(blocks, inputs)
    lost = torch.cat([kept, kept + blocks * inputs], 1)
    return Reader(name, windows, kept, lost, taken.mT.contiguous(), tuple(weight.shape))


def _reader(name: str, layer: nn.Module, weight: Tensor, index: Tensor) -> Reader | None:
    blocks, (outputs, inputs), offsets = int(getattr(layer, "groups", 1)), weight.shape[:2], weight[0, 0].numel()
    index = index.flatten(1)
    rows, columns = index[:, 0] // (inputs * offsets), index % (inputs * offsets)
    if len(rows) % blocks or not torch.equal(
        rows // (outputs // blocks), torch.arange(blocks).repeat_interleave(len(rows) // blocks)
    ):
        return None  # whole blocks went
    kept = columns.view(blocks, -1, columns.shape[1])
    if not torch.equal(kept, kept[:, :1].expand_as(kept)):
        return None
    kept = kept[:, 0, ::offsets] // offsets
    windows = isinstance(layer, nn.Linear) or isinstance(layer, nn.Conv2d) and inputs * offsets <= WIDEST
    gone = torch.ones(blocks, inputs, dtype=torch.bool).scatter_(1, kept, False)
    lost = gone.nonzero()[:, 1].view(blocks, -1)
    device = weight.device
    flat = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))[rows.to(device)]
    flat = flat.view(blocks, -1, inputs, offsets).transpose(2, 3)
    taken = flat.gather(3, lost.to(device)[:, None, None].expand(-1, *flat.shape[1:3], -1))
    taken = taken.flatten(2) if windows else taken.flatten(1, 2)
    base = inputs * torch.arange(blocks)[:, None]
    shape = (len(rows), kept.shape[1], *weight.shape[2:])
    return Reader(name, windows, (kept + base).to(device), (lost + base).to(device), taken.mT.contiguous(), shape)


def rows_of(
    layer: nn.Module, reader: Reader, x: Tensor, positions: int, seed: int, most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the layer reads of the inputs that stay at some positions, the same in every sample; and what the rest adds.

    Args:
        layer: a stock convolution or linear layer.
        reader: it.
        x: its input.
        positions: how many; where there are no more, all.
        seed: chooses them.
        most: numbers in a piece, unless a sample has more.

    Yields:
        Rows ``(blocks, n, columns)`` and what the inputs that go contribute, ``(blocks, n, outputs)``.
    """
    if isinstance(layer, nn.Linear):
        x = x.reshape(len(x) if x.dim() > 1 else 1, -1, x.shape[-1])
    elif x.dim() == layer.get_parameter("weight").dim() - 1:
        x = x[None]  # a convolution takes one sample without a batch axis
    offsets = 1
    if reader.windows and isinstance(layer, nn.Conv2d):
        x = _padded(layer, x)
        height, width = (_places(x, layer, d) for d in (0, 1))
        chosen = _chosen(height * width, positions, seed)
        rows, columns = _seen(layer, 0, chosen // width)[:, :, None], _seen(layer, 1, chosen % width)[:, None]
        at: tuple[Tensor, ...] = (rows.to(x.device), columns.to(x.device))
        offsets = math.prod(layer.kernel_size)
        x = x.permute(0, 2, 3, 1)
    else:
        x = x if isinstance(layer, nn.Linear) else x.flatten(2).mT
        chosen = _chosen(x.shape[1], positions, seed)
        at = (chosen.to(x.device),)
    per_sample = len(chosen) * offsets * (reader.kept.numel() + reader.lost.numel())
    for part in x.split(max(1, most // max(1, per_sample))):
        kept, lost = (_rows(part, inputs, at) for inputs in (reader.kept, reader.lost))
        yield kept, lost @ reader.weight


def _rows(x: Tensor, inputs: Tensor, at: tuple[Tensor, ...]) -> Tensor:
    """Some of the channels, which are last in ``x`` so that they are copied in one go, at each place and offset."""
    x = x[..., inputs.flatten()].contiguous()
    where: tuple[slice | Tensor, ...] = (slice(None), *at)
    found = x[where].flatten(0, 1)  # places, then offsets in two dimensions, or in none
    return found.reshape(len(found), -1, *inputs.shape).permute(2, 0, 1, 3).flatten(2)


def _chosen(places: int, positions: int, seed: int) -> Tensor:
    return torch.randperm(places, generator=torch.Generator().manual_seed(seed))[:positions]


def _places(x: Tensor, layer: nn.Conv2d, dim: int) -> int:
    reach = layer.dilation[dim] * (layer.kernel_size[dim] - 1)
    return (x.shape[2 + dim] - reach - 1) // layer.stride[dim] + 1


def _seen(layer: nn.Conv2d, dim: int, place: Tensor) -> Tensor:
    """Rows or columns of the padded input under the kernel, ``(places, kernel)``."""
    return place[:, None] * layer.stride[dim] + torch.arange(layer.kernel_size[dim]) * layer.dilation[dim]


def _padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    # torch's own resolution of padding="same" and of the padding modes
    padding = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, padding, mode=mode) if any(padding) else x
