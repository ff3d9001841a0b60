"""What a Fisher pass costs, against a plain validation forward of the same batch, in one run.

    python benchmarks/fisher_cost.py                 # two threads, batch 64, 128 px
    python benchmarks/fisher_cost.py --threads 8 --repeats 15

The three passes (forward, gate Fisher, weight Fisher) take turns, and each figure is the median over the turns, so
that a machine that is busy for a while disturbs all of them alike; run it on an idle machine all the same. A validation
forward is network and loss under ``no_grad``; a Fisher pass is its own forward, the backward and the sums, and stands
in place of nothing: the callback adds it to the validation. "state" is what is kept between batches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from printing import arguments, print_table
from torch.nn import functional as F

from hqp_lightning.core.fisher import FisherState, gate_fisher, weight_fisher
from hqp_lightning.surgery import Shadow

MODELS = ("resnet18", "mobilenet_v3_small")
HEADER = ("model", "memory format", "forward ms", "gate", "weight", "gate state", "weight state")


def medians(passes: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each pass; they take turns, after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(repeats + 1):
        for name, run in passes.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def state_size(state: FisherState, of: int) -> str:
    """Bytes of the sums, and floats per channel or weight that they describe."""
    size = sum(t.numel() * t.element_size() for t in state.sums.values())
    floats = sum(t.numel() for t in state.sums.values())
    return f"{size:,} B, {floats / of:.2f} each"


def measure(name: str, channels_last: bool, batch: int, px: int, repeats: int) -> tuple[str, ...]:
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(num_classes=10).eval()
    x, y = torch.randn(batch, 3, px, px), torch.randint(0, 10, (batch,))
    groups = Shadow(network, [x[:2]]).groups()
    layers = list(dict.fromkeys(f.parameter.rpartition(".")[0] for g in groups for f in g.filters))
    if channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.no_grad():
            F.cross_entropy(network(x), y)

    def gate() -> FisherState:
        return gate_fisher(network, groups, lambda: F.cross_entropy(network(x), y, reduction="none"))

    def weight() -> FisherState:
        return weight_fisher(network, layers, lambda: F.cross_entropy(network(x), y, reduction="none"))

    ms = medians({"forward": forward, "gate": gate, "weight": weight}, repeats)
    channels = sum(g.channels for g in groups)
    weights = sum(p.numel() for layer in layers for p in network.get_submodule(layer).parameters())
    return (
        name,
        "channels_last" if channels_last else "contiguous",
        f"{ms['forward']:.0f}",
        f"{ms['gate'] / ms['forward']:.2f}x",
        f"{ms['weight'] / ms['forward']:.2f}x",
        state_size(gate(), channels),
        state_size(weight(), weights),
    )


def main() -> None:
    args = arguments(__doc__, threads=2, batch=64, px=128, repeats=9)
    about = f"batch {args.batch} at {args.px} px; median of {args.repeats}; ratios to the forward"
    kinds = [(name, channels_last) for name in MODELS for channels_last in (False, True)]
    print_table(about, HEADER, (measure(*kind, args.batch, args.px, args.repeats) for kind in kinds))


if __name__ == "__main__":
    main()
