"""The price of a network's structure in milliseconds: a table that is read, or made on this machine."""

from __future__ import annotations

import logging
import random
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import nn

from hqp_lightning import export
from hqp_lightning.core.calls import Call
from hqp_lightning.core.latency import Price, price_of
from hqp_lightning.errors import ConfigurationError, ExportError, SurgeryError
from hqp_lightning.export.latency import How, Whole, measure_table
from hqp_lightning.loop.exportable import LAYOUTS, exportable, laid_out
from hqp_lightning.loop.options import ExportOptions, PruningOptions
from hqp_lightning.loop.scores import look
from hqp_lightning.loop.trainer import loose
from hqp_lightning.records import LatencyTable
from hqp_lightning.report.latency_table import read_table
from hqp_lightning.surgery import Shadow, apply_cut_, called_layers, layer_widths, per_channel
from hqp_lightning.surgery.copying import copied
from hqp_lightning.surgery.folding import remove_

__all__ = ["ARCHIVE", "drawn", "made_here", "priced", "whole", "without"]

_log = logging.getLogger(__name__)

ARCHIVE = "latency_networks.zip"
"""Beside the report: what `hqp-engine profile` times on a board."""
NETWORKS = 9
"""That are measured: the dense one and drawn ones; a part has at most four numbers to fit."""
_GRIDS = 4
_GONE = (0.0, 0.6)  # of the gates and blocks, in half of the drawn networks: what does a call cost without?
_LEAST = 0.2  # of a group's channels, in a drawn network


def priced(trainer: Trainer, network: nn.Module, example: Call, shadow: Shadow, options: PruningOptions) -> Price:
    """The price by the table that ``cost`` names, or by one that is made now, on the first rank.

    Raises:
        ConfigurationError: the table can't be read, is of another network, or can't be made.
    """
    call = example.map(lambda x: x[:1] if x.dim() else x)
    twin = copied(network)
    widths = layer_widths(twin, called_layers(twin, call))
    asked = next((c for c in loose(trainer).callbacks if isinstance(getattr(c, "options", None), ExportOptions)), None)
    how, archive = How(), None
    if asked is not None:
        how = How(**{n: getattr(asked.options, n) for n in How.__slots__})
        archive = Path(asked.dirpath) / ARCHIVE
    if options.table is not None:
        table = read_table(options.table)
        size = table.batch_size if asked is None else how.batch_size
        _check_calls(table, options.table, call.map(lambda x: laid_out(x, how.layout)), size)
        return price_of(table, widths, options.table)
    units = [u.key for u in look(shadow, options.units).units]
    make = partial(made_here, network, call, shadow, options.round_to, how, archive, units)
    made = trainer.strategy.broadcast(make() if trainer.is_global_zero else None)
    if made is None:
        raise ConfigurationError("the first process could not make a latency table; its message says why.")
    return price_of(made, widths)


def _check_calls(table: LatencyTable, path: str, call: Call, batch_size: int) -> None:
    """Refuse a table of other calls: of as many layers and channels, but another size of pictures or batches."""
    here = tuple(shape[1:] for shape in call.shapes())
    same = len(table.inputs) == len(here) and all(
        len(t) == len(h) and all(k in (0, s) for k, s in zip(t, h, strict=True))  # 0: any
        for t, h in zip(table.inputs, here, strict=True)
    )
    if not same:
        shown = (", ".join("×".join(map(str, s)) for s in shapes) for shapes in (table.inputs, here))
        raise ConfigurationError("{} is of inputs of {}; the file takes {}: make it again.".format(path, *shown))
    if table.batch_size != batch_size:
        raise ConfigurationError(
            f"{path} is of calls of {table.batch_size} samples, and Int8Export has batch_size={batch_size}: give both "
            "the same."
        )


def made_here(
    network: nn.Module,
    call: Call,
    shadow: Shadow,
    round_to: int,
    how: How,
    archive: Path | None = None,
    units: Sequence[str] = (),
    others: Iterable[tuple[str, nn.Module]] = (),
) -> LatencyTable:
    """Time the dense network in float and INT8, and INT8 networks of drawn widths, with their parts.

    Args:
        network: the dense one.
        call: what it receives, of one sample.
        shadow: of it.
        round_to: widths are multiples of it.
        how: networks are quantized and run.
        archive: see `measure_table`.
        units: keys of gates and blocks that may go.
        others: further networks to time in turn with these, by name.

    Raises:
        ConfigurationError: the network can't be written as ONNX, or not be timed.
    """
    draw = random.Random(0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the export itself gives them again
        try:
            wholes = [whole("dense", network, call, Path(folder), how.layout)]
            for k in range(1, NETWORKS):  # with widths on coarse and on fine grids: engines like some better
                turn, grid = divmod(k - 1, _GRIDS)
                share = _GONE[(k + turn) % 2]  # every grid with units and without
                rest = _without_some(network, shadow, [u for u in units if draw.random() < share])
                part = drawn(*rest, draw, round_to * 2**grid)
                wholes.append(whole(f"drawn {k}", part, call, Path(folder), how.layout))
            wholes += [replace(whole(n, part, call, Path(folder), how.layout), counted=False) for n, part in others]
            table = measure_table(wholes, per_channel(network, wholes[0].widths), how, archive)
        except (ConfigurationError, ExportError) as error:
            raise ConfigurationError(f"cost='latency' times ONNX files, which can't be made: {error}") from error
    _log.info("hqp: latency table of %s %s: %d parts", table.engine, table.version, len(table.parts))
    return table


def whole(name: str, network: nn.Module, call: Call, folder: Path, layout: str = LAYOUTS[0]) -> Whole:
    """Write a network as it is exported, to be timed; ``layout``: one of `LAYOUTS`."""
    made = exportable(network, call, layout=layout)
    example = [torch.nan_to_num(x) for x in made.example]
    path = str(folder / f"{name}.onnx")
    export.export_onnx(made.module, example, path, inputs=made.inputs, outputs=made.outputs)
    twin = copied(network)
    called = called_layers(twin, call)
    return Whole(name, layer_widths(network, called), path, called)


def without(network: nn.Module, shadow: Shadow, units: Sequence[str]) -> tuple[nn.Module, Shadow]:
    """A copy of a network without these gates and blocks, by their keys, and its shadow."""
    less, twin = shadow.without(units), copied(network)
    for r in less.removals:
        remove_(twin, r)
    if less.removals:
        apply_cut_(twin, less.cut({}))
    return twin, less


def _without_some(network: nn.Module, shadow: Shadow, units: Sequence[str]) -> tuple[nn.Module, Shadow]:
    """Without these units, or half of them, and so on, where they can't go together."""
    try:
        return without(network, shadow, units)
    except SurgeryError as error:
        if not units:
            raise
        _log.info("hqp: a network of the latency table keeps more of its gates and blocks: %s", error)
        return _without_some(network, shadow, units[: len(units) // 2])


def drawn(network: nn.Module, shadow: Shadow, draw: random.Random, round_to: int, least: float = _LEAST) -> nn.Module:
    """A copy in which every group has a drawn number of channels, in multiples of ``round_to``, or less where few."""
    removed = {}
    for g in shadow.groups():
        grid = round_to
        while grid % 2 == 0 and grid > g.channels // 4:
            grid //= 2
        kept = max(round(g.channels * draw.uniform(least, 1.0) / grid), 1) * grid
        if (gates := (g.channels - kept) // g.blocks) > 0:
            removed[g.name] = [k + b * g.gates for k in range(gates) for b in range(g.blocks)]
    twin = copied(network)
    try:
        bad = shadow.unprovable(removed)
        apply_cut_(twin, shadow.cut({n: c for n, c in removed.items() if n not in bad}))
    except SurgeryError as error:
        _log.info("hqp: no narrower network for the latency table: %s", error)
    return twin
