"""Which channels go: our criteria and torch-pruning's, at equal MACs, with the same rounding and the same healing.

    python benchmarks/criteria.py --data DATA --weights mobilenet_v3_small=mv3.pth --left 0.65 0.4
    python benchmarks/criteria.py --data DATA --weights resnet18=r18.pth --left 0.4 --heal 0 --images 500

"Fisher" is `HQPPruning`'s (gates, per MAC), "in parts" with fresh scores after every quarter of the MACs and
compensation between them. "set" goes by the loss of the whole set of gates, ½·1ᵀC1 of the per-sample gate gradients,
greedily by what each tile adds to it for its MACs; "residual" by the Fisher value of what a ridge regression on the
other inputs leaves of a channel, per MAC; "even Fisher" by the Fisher value over the mean of its group, at no price.

Torch-pruning's importances are ranked over all channels, as its pruners do; "isomorphic" takes the same share of each
kind of group. Torch-pruning divides its scores by the mean of their group: "raw" leaves that out, "priced" does, too,
and divides by MACs. Its Hessian is given the mean of the squared gradients of all samples (its own `accumulate_grad`
keeps those of the last one).

Validation images score, others judge; training images compensate, correct BatchNorm and heal (AdamW, distillation).
"corrected" is the cut with BatchNorm's statistics corrected, "compensated" with the readers' regression before that.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from compensation import carry_, compensated, scores, top1
from others import losses, torch_pruned, with_gradients
from photographs import batches_of
from printing import print_table
from torch import Tensor, nn
from torch.nn import functional as F
from trained import network

from hqp_lightning.core.compensation import STRENGTHS
from hqp_lightning.core.selection import Caps, bundles_of, propose
from hqp_lightning.core.taps import at_inputs, run_backward
from hqp_lightning.surgery import Cut, Shadow, apply_cut_

HEADER = ("network", "criterion", "MACs left", "corrected", "compensated", "healed", "scores, s (CPU)")
PART = 0.25  # as a step of HQPPruning has it


def derivatives(model: nn.Module, groups: Sequence, data: Sequence, change: Mapping | None = None) -> dict[str, Tensor]:
    """Per sample and gate, the derivative of the loss: ``(samples, gates)``; ``change`` stands for a reader's input."""
    readers: dict[str, list] = {}
    for group in groups:
        for c in group.consumers:
            readers.setdefault(c.module, []).append((group, torch.tensor(c.inputs), torch.tensor(c.channels)))
    found: list[dict[str, Tensor]] = []

    def receive(name: str, activation: Tensor, grad: Tensor, scale: float) -> None:
        whole = change[name](activation) if change else activation
        product = whole * grad * scale
        product = product.flatten(2).sum(2) if product.dim() > 2 else product
        for group, inputs, channels in readers[name]:
            made = found[-1].setdefault(group.name, product.new_zeros(len(product), group.gates))
            made.index_add_(1, channels % group.gates, product[:, inputs])

    for x, y in data:
        found.append({})
        run_backward(model, list(readers), partial(losses, model, x, y), receive, at_inputs)
    return {g.name: torch.cat([f[g.name] for f in found]) for g in groups}


def residuals(model: nn.Module, groups: Sequence, data: Sequence) -> dict:
    """By reader: what a regression of each input on the others leaves of it."""
    names, sums = sorted({c.module for g in groups for c in g.consumers}), {}

    def see(name: str, _: nn.Module, args: tuple) -> None:
        rows = args[0].flatten(2).mT.flatten(0, 1) if args[0].dim() > 2 else args[0]
        count, total, square = sums.get(name, (0, 0.0, 0.0))
        sums[name] = count + len(rows), total + rows.sum(0).double(), square + (rows.mT @ rows).double()

    handles = [model.get_submodule(n).register_forward_pre_hook(partial(see, n)) for n in names]
    with torch.no_grad():
        for x, _ in data:
            model(x)
    for handle in handles:
        handle.remove()
    found = {}
    for name, (count, total, square) in sums.items():
        mean = total / count
        covariance = square / count - mean[:, None] * mean
        ridged = covariance + 0.01 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=mean.dtype)
        precision = torch.linalg.inv(ridged)
        found[name] = partial(_left, mean.float(), (precision / precision.diagonal()[:, None]).float())
    return found


def _left(mean: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
    shape = -1, *[1] * (x.dim() - 2)
    centred = x - mean.view(shape)
    return F.conv2d(centred, matrix[:, :, None, None]) if x.dim() == 4 else centred @ matrix.mT


def by_set(groups: Sequence, found: Mapping[str, Tensor], target: float) -> dict[str, tuple[int, ...]]:
    """Tiles by what they add to ½ E[(Σ of the derivatives)²] for each MAC."""
    caps, left = Caps(), {g.name: list(range(g.gates)) for g in groups}
    allowed = {g.name: len(bundles_of(g, torch.zeros(g.gates), caps)) for g in groups}
    size = {g.name: len(b[0].channels) // g.blocks for g in groups if (b := bundles_of(g, torch.zeros(g.gates), caps))}
    removed: dict[str, list[int]] = {}
    saved, total = 0.0, torch.zeros(len(next(iter(found.values()))))
    while saved < target:
        offers = []
        for g in groups:
            if allowed[g.name]:
                d = found[g.name][:, left[g.name]]
                alone = (d * total[:, None] + 0.5 * d.square()).mean(0)
                gates = [left[g.name][i] for i in alone.argsort()[: size[g.name]].tolist()]
                whole = found[g.name][:, gates].sum(1)
                macs = g.macs_per_channel * len(gates) * g.blocks
                loss = float((total * whole + 0.5 * whole.square()).mean())
                offers.append((loss / macs, g.name, gates, whole, macs, g))
        _, name, gates, whole, macs, g = min(offers, key=lambda o: o[:2])
        total, saved = total + whole, saved + macs
        left[name] = [i for i in left[name] if i not in gates]
        removed.setdefault(name, []).extend(i + b * g.gates for i in gates for b in range(g.blocks))
        allowed[name] -= 1
    return {n: tuple(sorted(c)) for n, c in removed.items()}


def heal_(model: nn.Module, teacher: nn.Module, data: Sequence, batches: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 2e-4)
    model.eval()  # with the statistics that were corrected: MobileNet's own would hardly move in so few batches
    for i in range(batches):
        x, _ = data[i % len(data)]
        with torch.no_grad():
            wanted = teacher(x).softmax(1)
        optimizer.zero_grad()
        F.cross_entropy(model(x), wanted).backward()
        optimizer.step()


def reach(shadow: Shadow, step: Callable[[float], dict], macs: float) -> Cut:
    """The cut that leaves about ``macs``; channels save less than they are priced at."""
    wanted, found = shadow.macs - macs, None
    asked = wanted
    for _ in range(3):
        cut = shadow.cut(step(asked))
        found = cut if found is None or abs(cut.macs - macs) < abs(found.macs - macs) else found
        asked *= wanted / max(shadow.macs - cut.macs, 1.0)
    return found


def choose(name: str, model: nn.Module, shadow: Shadow, data: Sequence):
    """A function of the MACs to save, and processor seconds."""
    started, groups = time.process_time(), shadow.groups()
    if name in ("Fisher", "in parts"):
        values, cost = scores(model, groups, data), "macs"
    elif name == "set":
        found = derivatives(model, groups, data)
        return partial(by_set, groups, found), time.process_time() - started
    elif name == "residual":
        change = residuals(model, groups, data)
        values, cost = {n: d.square().mean(0) for n, d in derivatives(model, groups, data, change).items()}, "macs"
    elif name == "even Fisher":
        values, cost = {n: x / x.mean() for n, x in scores(model, groups, data).items()}, "none"
    else:
        kind, cost = name.split()[-1], "macs" if name.startswith("priced") else "none"
        twin = model if kind == "Magnitude" else with_gradients(model, data, kind == "Hessian")
        raw = name.startswith(("raw", "priced"))
        values = torch_pruned(twin, groups, kind, data[0][0][:2], name.startswith("isomorphic"), raw)
    step = lambda macs: propose(groups, values, macs, cost=cost).removed  # noqa: E731
    return step, time.process_time() - started


NAMES = ("Fisher", "in parts", "set", "residual", "Taylor", "isomorphic Taylor", "Magnitude", "Hessian")
MORE = ("even Fisher", "raw Hessian", "priced Hessian")


def rows(label: str, dense: nn.Module, data: Sequence, args: argparse.Namespace):
    train, scoring, judging = data
    seeing = train[:4]
    for name in args.criteria:
        shadow = Shadow(dense, [train[0][0][:2]])
        first, seconds = choose(name, dense, shadow, scoring)
        for left in args.left:
            macs, model, made, step, spent = left * shadow.macs, dense, shadow, first, seconds
            while name == "in parts" and macs < (1 - PART) * made.macs:
                cut = reach(made, step, (1 - PART) * made.macs)
                before, model = model, compensated(model, cut, seeing, STRENGTHS)[0]
                carry_(model, before, cut, seeing)
                made = Shadow(model, [train[0][0][:2]])
                step, more = choose("Fisher", model, made, scoring)
                spent += more
            cut, corrected = reach(made, step, macs), ""
            if name != "in parts":
                plain = copy.deepcopy(model)
                apply_cut_(plain, cut)
                carry_(plain, model, cut, seeing)
                corrected = f"{top1(plain, judging):.4f}"
            found = compensated(model, cut, seeing, STRENGTHS)[0]
            carry_(found, model, cut, seeing)
            row = [label, name, f"{cut.macs / shadow.macs:.1%}", corrected, f"{top1(found, judging):.4f}"]
            heal_(found, dense, train, args.heal)
            yield (*row, f"{top1(found, judging):.4f}" if args.heal else "", f"{spent:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds imagenette2-160")
    parser.add_argument("--weights", required=True, nargs="+", metavar="NETWORK=FILE", help="state dicts, ten classes")
    parser.add_argument("--left", type=float, nargs="+", default=[0.65, 0.4], help="share of the MACs")
    parser.add_argument("--criteria", nargs="+", choices=(*NAMES, *MORE), default=list(NAMES))
    parser.add_argument("--scoring", type=int, default=512)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--heal", type=int, default=40, help="batches of 64")
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = batches_of(args.data, args.px, (64 * max(4, args.heal), args.scoring, args.images))
    entries = [entry.partition("=")[::2] for entry in args.weights]
    nets = {f"{n} ({top1(network(n, file), data[2]):.4f})": network(n, file) for n, file in entries}
    about = f"{args.px} px; {args.scoring} images score, {args.images} judge, {args.heal} batches of 64 heal"
    print_table(about, HEADER, (r for label, dense in nets.items() for r in rows(label, dense, data, args)))


if __name__ == "__main__":
    main()
