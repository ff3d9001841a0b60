"""``hqp-engine profile``: the latency table of this machine's GPU, which ``cost="TABLE.json"`` of a pruning reads."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from hqp_lightning.board.arrays import Arrays, bundle
from hqp_lightning.board.build import build_plan
from hqp_lightning.board.cuda import Cuda
from hqp_lightning.board.engine import LoadedEngine
from hqp_lightning.board.files import check_writable, write_whole
from hqp_lightning.board.library import import_tensorrt
from hqp_lightning.board.parts import totals
from hqp_lightning.board.provenance import source_for
from hqp_lightning.errors import ExportError

__all__ = ["PLAN", "profile"]

PLAN = "table.json"
"""In the archive: the table as the training machine measured it, with ``files`` and ``nodes`` beside."""
_CACHE = "timings.cache"


def profile(networks: Path, output: Path, runs: int = 200) -> list[str]:
    """Build and time the networks of an archive, with their layers; write the table, and return the lines to show.

    Args:
        networks: ``latency_networks.zip`` of a run with ``cost="latency"``.
        output: the table to write.
        runs: timed calls of each network.

    Raises:
        ExportError: no GPU or TensorRT, no such archive, or a network that can't be built.
    """
    check_writable(output)
    if runs < 1:
        raise ExportError(f"runs={runs}: expected at least 1")
    cuda = Cuda()  # the driver first: without a GPU trt.Runtime ends the process (8.6)
    trt = import_tensorrt()
    said = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = _unpacked(networks, folder)
        files, nodes = table.pop("files"), table.pop("nodes")
        layers = set(table["networks"][0]["widths"])
        for network, file in zip(table["networks"], files):
            source = source_for(trt, folder / file, network["precision"])
            size = table["batch_size"]
            cache = folder / _CACHE
            plan, _ = build_plan(trt, source, network["precision"], batch_size=size, max_batch=size, timing_cache=cache)
            with LoadedEngine(trt, cuda, plan, source) as engine:
                batch = _batch(engine, size)
                network["ms"] = engine.time(batch, runs=runs).median_ms
                by_layer = _layer_times(trt, engine, batch, runs) if network["precision"] == "int8" else {}
                network["parts"] = totals(by_layer, nodes, layers)
                device = engine.gpu
            said.append(f"{network['name']}: {network['precision']}, {network['ms']:.3f} ms")
    # A part that an engine fused with another takes no time of its own, and one that it alone has is not priced.
    known = {name for n in table["networks"] for name in n["parts"]}
    table["parts"] = {name: part for name, part in table["parts"].items() if name in known}
    for network in table["networks"]:
        network["parts"] = {name: ms for name, ms in network["parts"].items() if name in table["parts"]}
    about = {"engine": "tensorrt", "version": trt.__version__, "device": device, "threads": 0, "clock": "gpu"}
    write_whole(output, json.dumps({**table, **about}).encode())
    return [*said, f"wrote {output} ({len(table['parts'])} parts): give it to the pruning as cost={output.name!r}"]


def _layer_times(trt: Any, engine: LoadedEngine, batch: Arrays, calls: int) -> dict[str, float]:
    """Median GPU time of each layer, milliseconds."""
    times: dict[str, list[float]] = {}

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # pybind11 wants it so

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    engine.profiled(batch, Profiler(), calls)
    return {name: float(np.median(ms)) for name, ms in times.items()}


def _unpacked(archive: Path, folder: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(str(archive)) as content:
            content.extractall(str(folder))
        table = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if not {"files", "nodes", "networks", "parts", "batch_size"} <= set(table):
            raise ValueError("its table lacks something")
        return table
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ExportError(
            f"{archive} is no archive of networks ({error}): a run with cost='latency' writes latency_networks.zip"
        ) from error


def _batch(engine: LoadedEngine, size: int) -> Arrays:
    return bundle(
        [np.full((size, *shape), 0.1 if kind.kind == "f" else 1, kind) for shape, kind in engine.inputs.values()]
    )
