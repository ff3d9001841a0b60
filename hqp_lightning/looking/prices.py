"""What can go of a network, with its price; and what stays, with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from hqp_lightning.core.selection import Caps, propose
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.records import ChannelGroup, GroupNote, PricedPart
from hqp_lightning.surgery import Shadow

__all__ = ["kept", "parts"]

STAYS = "stays"


def parts(shadow: Shadow, network: nn.Module, saliency: Mapping[str, Tensor]) -> tuple[PricedPart, ...]:
    """The groups, then the units, in the order of the network; without those that no value is known of."""
    params = shadow.group_params()
    rows = [
        PricedPart(g.name, "channels", g.channels, *_losses(saliency[g.name]), g.macs_per_channel * g.channels, p)
        for g, p in ((g, params[g.name]) for g in shadow.groups())
        if g.name in saliency
    ]
    for u in shadow.units():
        if u.key in saliency:
            loss = float(saliency[u.key].sum()) / 2
            size = sum(p.numel() for p in network.get_submodule(u.name).parameters())
            rows.append(PricedPart(u.name, u.kind, 0, loss, loss, u.macs, size))
    return tuple(rows)


def kept(
    shadow: Shadow,
    network: nn.Module,
    saliency: Mapping[str, Tensor],
    options: PruningOptions,
    failed: Iterable[GroupNote] = (),
) -> tuple[GroupNote, ...]:
    """What no cut takes, or only approximately: by the proof of cuts, as a head, as asked, or by the limits.

    Args:
        shadow: the traced network.
        network: as it is.
        saliency: Fisher values by name.
        options: the limits of a cut.
        failed: what trying steps found.
    """
    proved = dict.fromkeys([*shadow.notes, *failed])
    return (*proved, *_narrow(shadow, saliency, options), *_unwritten(shadow, network, options))


def _losses(values: Tensor) -> tuple[float, float]:
    """Of all gates, and of the cheaper half of them."""
    costs = values[values.isfinite()].double().sort().values / 2
    return float(costs.sum()), float(costs[: len(costs) // 2].sum())


def _narrow(shadow: Shadow, saliency: Mapping[str, Tensor], options: PruningOptions) -> Iterator[GroupNote]:
    caps = Caps(options.round_to, options.max_channel_ratio)
    for g in shadow.groups():
        if g.name in saliency and not propose([g], saliency, shadow.macs, caps).parts:
            values = saliency[g.name]
            reason = f"none of {g.channels} channels may go with round_to={options.round_to}"
            reason += f", max_channel_ratio={options.max_channel_ratio:g}"
            if not bool(values.isfinite().any()):
                reason = "its Fisher values are no finite numbers"
            yield GroupNote(g.name, g.channels, STAYS, reason)


def _unwritten(shadow: Shadow, network: nn.Module, options: PruningOptions) -> Iterator[GroupNote]:
    written = {layer for g in shadow.groups() for layer in _writers(g)} | {n.group for n in shadow.notes}
    out = [n.group for n in shadow.notes if n.status == "left out"]
    for name, layer in network.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)) or name in written:
            continue
        if any(name == i or name.startswith(f"{i}.") for i in options.ignore):
            reason = "ignored, as asked"
        elif out:
            reason = "its channels are the network's outputs, or go together with those of a group that is left out"
        else:
            reason = "its channels are the network's outputs, or go together with those of such a layer"
        width = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        yield GroupNote(name, width, STAYS, reason)


def _writers(group: ChannelGroup) -> set[str]:
    return {f.parameter.rpartition(".")[0] for f in group.filters}
