"""What one pruning step costs beside the training: seconds of surgery, and the memory of the snapshot that undoes it.

    python benchmarks/surgery_cost.py                # two threads, AdamW, a tenth of every group's channels
    python benchmarks/surgery_cost.py --threads 8 --repeats 15

The stages are those of ``HQPPruning``'s step, in their order: trace the network and find its groups, plan the cut on
the copy and try it, take the snapshot (network, optimizer, scheduler), cut the network and its optimizer. "rollback"
puts everything back. Each figure is the median over the repeats, each on a fresh copy that has trained for a step.

For the networks of the recipes, also the whole step with the passes over data that it takes, correcting BatchNorm and
then compensation as well (`whole_step.py`, one thread, one run each, in processes of their own): processor seconds,
also in batches of healing.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from printing import arguments, print_table
from torch.nn import functional as F

from hqp_lightning.surgery import Shadow, Snapshot, apply_cut_, restore_, slice_optimizers_, take

MODELS = ("resnet18", "resnet50", "mobilenet_v3_small", "mobilenet_v3_large")
STAGES = ("trace", "plan", "snapshot", "cut", "rollback")
RECIPES = ("resnet18", "mobilenet_v3_small")
HEADER = (
    *("model", *(f"{s} s" for s in STAGES), "whole step s", "snapshot MB", "parameters and state MB"),
    *("step with BatchNorm: CPU s (batches)", "with compensation too: CPU s (batches)"),
)


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []


def megabytes(value: Any) -> float:
    return sum(t.numel() * t.element_size() for t in tensors(value)) / 1e6


def timed(times: dict[str, list[float]], stage: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    times[stage].append(time.perf_counter() - start)
    return result


def measure(name: str, px: int, repeats: int) -> tuple[str, ...]:
    torch.manual_seed(0)
    dense, x = getattr(torchvision.models, name)(num_classes=10), torch.randn(2, 3, px, px)
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for _ in range(repeats + 1):
        network = copy.deepcopy(dense)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, 100)
        F.cross_entropy(network(x), torch.tensor([0, 1])).backward()
        optimizer.step()
        shadow = timed(times, "trace", lambda n=network: Shadow(n, [x]))
        groups = shadow.groups()
        gates = {g: range(max(1, g.gates // 10)) for g in groups}
        removed = {g.name: [k + b * g.gates for k in chosen for b in range(g.blocks)] for g, chosen in gates.items()}
        cut = timed(times, "plan", lambda s=shadow, r=removed: s.cut(r))
        held = [network, [optimizer], [scheduler]]
        undo: Snapshot = timed(times, "snapshot", lambda h=held: take(*h))

        def operate(network: Any = network, optimizer: Any = optimizer, cut: Any = cut) -> None:
            apply_cut_(network, cut)
            slice_optimizers_([optimizer], network, cut)

        timed(times, "cut", operate)
        timed(times, "rollback", lambda u=undo, h=held: restore_(u, *h))
    seconds = {stage: statistics.median(values[1:]) for stage, values in times.items()}
    state = list(optimizer.state.values())
    return (
        name,
        *(f"{seconds[s]:.3f}" for s in STAGES),
        f"{sum(v for s, v in seconds.items() if s != 'rollback'):.3f}",
        f"{megabytes(undo.to_plain()):.1f}",
        f"{megabytes([*network.parameters(), *network.buffers()]) + megabytes(state):.1f}",
        *(with_data(name, px) if name in RECIPES else ("", "")),
    )


def with_data(name: str, px: int) -> tuple[str, ...]:
    found = []
    for compensate in ("no", "yes"):
        command = [sys.executable, str(Path(__file__).with_name("whole_step.py")), name, str(px), compensate]
        found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return tuple(f"{f['step']:.1f} ({f['step'] / f['batch']:.1f})" for f in found)


def main() -> None:
    args = arguments(__doc__, threads=2, px=128, repeats=5)
    about = f"{args.px} px; AdamW; median of {args.repeats}"
    print_table(about, HEADER, (measure(name, args.px, args.repeats) for name in MODELS))


if __name__ == "__main__":
    main()
