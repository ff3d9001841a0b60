"""Carry the statistics of BatchNorm over a prune: what the prune changed comes in, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hqp_lightning.core.calls import Call, as_call
from hqp_lightning.core.modes import evaluating
from hqp_lightning.core.moments import Moments, carried, merge, moments

__all__ = ["recalibrate_batchnorm_", "tracking_batchnorm"]


def tracking_batchnorm(module: nn.Module) -> tuple[str, ...]:
    """Names of the BatchNorm layers whose statistics follow the data while ``module`` trains.

    The others are frozen: in eval mode, with a momentum of zero, or told not to track.
    """

    def tracks(m: nn.Module) -> bool:
        return isinstance(m, _BatchNorm) and m.training and m.track_running_stats and m.momentum != 0

    return tuple(n for n, m in module.named_modules() if tracks(m) and m.running_mean is not None)


def recalibrate_batchnorm_(
    module: nn.Module,
    before: nn.Module,
    kept: Mapping[str, Tensor],
    batches: Iterable[Call | tuple[Any, ...]],
    names: Iterable[str] | None = None,
) -> int:
    """Correct the running means and variances of a pruned network by what the prune changed, in place.

    Removing channels shifts what the layers behind them see; the old statistics then cost accuracy that a few forward
    passes give back. Both networks see the same batches, in eval mode, and each channel of a layer's output gets back
    the mean and the variance that it had: see `hqp_lightning.core.moments.carried`. Where the statistics were those of
    the data this is to re-estimate them. Where they were not, as in a network with folded BatchNorm, re-estimating
    would make another network, even with nothing removed; this does not.

    Args:
        module: the pruned network.
        before: a copy of it from before the prune.
        kept: for ``"<layer>.running_mean"`` the channels that survived, see `Cut`; a layer that is missing kept all.
        batches: its calls, batch by batch; a tuple is inputs by place. Those that give values which are not finite
            (a broken image) are left out.
        names: the layers to correct; by default `tracking_batchnorm`.

    Returns:
        The number of batches used; with none, nothing changes.
    """
    taps = [
        _Tap(_batchnorm(module, n), _batchnorm(before, n), kept.get(f"{n}.running_mean"))
        for n in (tracking_batchnorm(module) if names is None else names)
    ]
    used = 0
    with evaluating(module, before), torch.no_grad():
        for call in batches if taps else ():  # whatever makes them may run the network, too
            with _tapped(taps):
                as_call(call).on(before)
                as_call(call).on(module)
            finite = all(tap.finite for tap in taps)
            for tap in taps:
                tap.end_batch(finite)
            used += finite
    if used:
        for tap in taps:
            tap.correct_()
    return used


class _Tap:
    """Both versions of one layer: what each receives, and the statistics that follow from it."""

    def __init__(self, layer: _BatchNorm, before: _BatchNorm, kept: Tensor | None) -> None:
        self.layer, self.before, self.kept = layer, before, kept
        # Not the layer's own as they stand: compensation may have shifted its mean already.
        self.mean, self.variance = (s if kept is None else s[kept.to(s.device)] for s in _running(before))
        self._own = [s.clone() for s in _running(layer)]
        self.seen: list[Moments] = []  # by the layer before the prune, call by call of a batch
        self.now: list[Moments] = []
        self.pairs: list[tuple[Moments, Moments]] = []

    def look(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Before a forward pass of the old layer."""
        self.seen.append(_received(layer, args, kwargs).of(self.kept))

    def follow(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Before one of the pruned layer: it computes with the statistics that fit this batch.

        The layers behind it then receive what they will receive in the end. Its own ``forward`` runs, which may do
        more than normalise (timm's does the activation, too).
        """
        self.now.append(_received(layer, args, kwargs))
        self._set_(self.seen[len(self.now) - 1], self.now[-1])

    @property
    def finite(self) -> bool:
        return all(m.finite for m in (*self.seen, *self.now))

    def end_batch(self, use: bool) -> None:
        if use:
            self.pairs += zip(self.seen, self.now, strict=True)
        self.seen, self.now = [], []

    def correct_(self) -> None:
        if self.pairs:  # else the forward never calls this layer
            self._set_(*(merge(side) for side in zip(*self.pairs, strict=True)))

    def reset_(self) -> None:
        for buffer, value in zip(_running(self.layer), self._own, strict=True):
            buffer.copy_(value)

    def _set_(self, before: Moments, after: Moments) -> None:
        values = carried(self.mean, self.variance, self.layer.eps, before, after)
        for buffer, value in zip(_running(self.layer), values, strict=True):
            buffer.copy_(value)


def _received(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Moments:
    own = moments(args[0] if args else next(iter(kwargs.values())))
    group = getattr(layer, "process_group", None)
    if not isinstance(layer, nn.SyncBatchNorm) or not torch.distributed.is_initialized():
        return own
    sums = torch.stack([torch.ones_like(own.mean), own.mean, own.variance + own.mean.square()]).double() * own.count
    torch.distributed.all_reduce(sums, group=group)
    count, mean, square = sums[0, 0], sums[1] / sums[0], sums[2] / sums[0]
    return Moments(float(count), mean.float(), (square - mean.square()).clamp(min=0).float())


@contextmanager
def _tapped(taps: Iterable[_Tap]) -> Iterator[None]:
    """Inside, the layers are watched; afterwards their statistics are what they were."""
    handles = [
        layer.register_forward_pre_hook(hook, with_kwargs=True)
        for tap in taps
        for layer, hook in ((tap.before, tap.look), (tap.layer, tap.follow))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for tap in taps:
            tap.reset_()


def _batchnorm(module: nn.Module, name: str) -> _BatchNorm:
    layer = module.get_submodule(name)
    if not isinstance(layer, _BatchNorm):
        raise TypeError(f"{name} is a {type(layer).__name__}, no BatchNorm")
    return layer


def _running(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    if layer.running_mean is None or layer.running_var is None:
        raise TypeError("a BatchNorm without running statistics has nothing to correct")
    return layer.running_mean, layer.running_var
