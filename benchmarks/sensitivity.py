"""Which layers to leave in float: measured noise against Fisher-weighted quantization errors, on the base models.

    python benchmarks/sensitivity.py --data DATA --weights resnet18=r18.pth mobilenet_v3_small=mv3.pth

Four rankings of the same quantizers, from the same ranges and the same samples:

- ``measured``: `quantization_noise`, a forward pass of the whole network for every layer;
- ``logits``: with *e* the error of the layer's output when its input and weights are quantized, v random signs on the
  logits (relative to their mean) and g = ∂(v·logits)/∂output: E_v Σ_samples (Σ g·e)² is what *measured* is to first
  order, for one forward pass, a backward pass for each probe, and each layer once more;
- ``fisher``: the same with labels drawn from the network's own softmax and g the gradient of the log-likelihood, so
  that it is twice the Kullback-Leibler divergence to second order;
- ``diagonal``: Σ F·δ² = Σ g²·e² of the latter: as if errors at different places were uncorrelated.

Table: seconds, Spearman's correlation with *measured*, and for the k first of each ranking left in float the noise of
the logits and the top-1 on validation images.
"""

from __future__ import annotations

import argparse
import operator
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
import torchvision
from photographs import photographs
from scipy.stats import spearmanr
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from hqp_lightning.core.calibration import Range
from hqp_lightning.export import Placement, collect_ranges, export_onnx, placements, quantization_noise, quantize
from hqp_lightning.export.engines import OnnxRuntimeBackend

KINDS = {
    "Conv": (nn.Conv2d,),
    "Gemm": (nn.Linear,),
    "Pool": (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    "Add": (operator.add, operator.iadd, torch.add),
}
RANKINGS = ("measured", "logits", "fisher", "diagonal")


def kind(op_type: str) -> str:
    return "Pool" if "Pool" in op_type else op_type


class Recorder(fx.Interpreter):
    """Runs a network with folded BatchNorm; keeps inputs and outputs of the nodes that the quantizers stand at."""

    def __init__(self, network: nn.Module, onnx_path: str) -> None:
        super().__init__(fuse(network.eval()))
        for layer in self.module.modules():
            if hasattr(layer, "inplace"):
                layer.inplace = False  # the output of a convolution is read again
        placed = {p.node: p for p in placements(onnx_path)}
        self.places: dict[fx.Node, Placement] = {}
        graph = onnx.load(onnx_path).graph
        layers = dict(self.module.named_modules())
        for name, what in KINDS.items():  # both list the nodes of a kind in the order in which they run
            there = [n.name for n in graph.node if kind(n.op_type) == name]
            here = [n for n in self.module.graph.nodes if n.target in what or type(layers.get(n.target)) in what]
            if len(there) != len(here):
                raise SystemExit(f"{len(there)} nodes {name} in the file, {len(here)} in torch's graph")
            self.places.update({n: placed[t] for n, t in zip(here, there, strict=True) if t in placed})
        self.inputs: dict[fx.Node, tuple[Tensor, ...]] = {}
        self.outputs: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:  # noqa: D102
        if n not in self.places:
            return super().run_node(n)
        args = self.fetch_args_kwargs_from_env(n)[0]
        self.inputs[n] = args
        self.outputs[n] = self.compute(n, args)
        return self.outputs[n]

    def compute(self, n: fx.Node, args: tuple[Tensor, ...]) -> Tensor:  # noqa: D102
        return args[0] + args[1] if n.op == "call_function" else self.fetch_attr(str(n.target))(*args)

    def errors(self, ranges: dict[str, Range]) -> dict[fx.Node, Tensor]:
        """What quantizing a node's input and weights changes at its output."""
        result = {}
        for n, place in self.places.items():
            args, step = list(self.inputs[n]), ranges[place.tensor].scale
            args[place.index] = (args[place.index] / step).round().clamp(-128, 127) * step
            layer = None if place.weight_axis is None else self.fetch_attr(str(n.target))
            if layer is not None:
                weight = layer.weight.data
                top = weight.flatten(1).abs().amax(1).clamp(min=1e-30).view(-1, *[1] * (weight.ndim - 1))
                layer.weight.data = (weight * 127 / top).round() * top / 127
            result[n] = self.compute(n, tuple(args)) - self.outputs[n]
            if layer is not None:
                layer.weight.data = weight
        return result


def weighted(recorder: Recorder, ranges: dict[str, Range], x: Tensor, kinds: tuple[str, ...], probes: int) -> dict:
    """The rankings that need gradients; for one at a time, so that each can be timed."""
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        logits = recorder.run(x.clone().requires_grad_())
        log_p = logits.log_softmax(1)
        nodes = list(recorder.places)
        sums = {k: dict.fromkeys(nodes, 0.0) for k in kinds}
        with torch.no_grad():
            errors = recorder.errors(ranges)
        for _ in range(probes):
            if kinds == ("logits",):
                signs = torch.randint(0, 2, logits.shape, generator=generator) * 2.0 - 1.0
                target = (logits * (signs - signs.mean(1, keepdim=True))).sum()
            else:
                labels = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
                target = log_p.gather(1, labels).sum()
            gradients = torch.autograd.grad(target, [recorder.outputs[n] for n in nodes], retain_graph=True)
            for n, g in zip(nodes, gradients, strict=True):
                product = (g * errors[n]).flatten(1).double()
                for k in kinds:
                    value = (product**2).sum() if k == "diagonal" else (product.sum(1) ** 2).sum()
                    sums[k][n] += float(value) / probes
    return {k: {recorder.places[n].node: v for n, v in s.items()} for k, s in sums.items()}


def compare(name: str, weights: str, data: tuple[np.ndarray, ...], args: argparse.Namespace, folder: Path) -> None:
    calibration, x, y = data
    network = getattr(torchvision.models, name)(num_classes=10)
    network.load_state_dict(torch.load(weights, weights_only=True))
    path = str(folder / f"{name}.onnx")
    export_onnx(network, torch.zeros(1, 3, args.px, args.px), path)
    ranges = collect_ranges(path, np.array_split(calibration, max(1, len(calibration) // 32)), threads=args.threads)
    sample = calibration[: args.samples]

    found, seconds = {}, {}
    start = time.perf_counter()
    found["measured"] = quantization_noise(path, ranges, sample, threads=args.threads)
    seconds["measured"] = time.perf_counter() - start
    for kinds in (("logits",), ("fisher", "diagonal")):
        start = time.perf_counter()
        recorder = Recorder(network, path)
        found.update(weighted(recorder, ranges, torch.from_numpy(sample), kinds, args.probes))
        seconds.update(dict.fromkeys(kinds, time.perf_counter() - start))

    def logits(file: str, precision: str) -> np.ndarray:
        with OnnxRuntimeBackend().build(file, precision, folder, threads=args.threads) as engine:
            out = np.concatenate([engine.run(part) for part in np.array_split(x, max(1, len(x) // 50))])
        return out - out.mean(1, keepdims=True)

    reference = logits(path, "fp32")
    nodes = list(found["measured"])
    print(f"\n{name}: {len(nodes)} layers; {args.samples} samples rank, {len(x)} images judge; float top-1 "
          f"{(reference.argmax(1) == y).mean():.4f}\n")  # fmt: skip
    head = " | ".join(f"{k} in float: noise, top-1" for k in args.keep)
    print(f"| ranking | s | Spearman | {head} |\n" + "|---" * (3 + len(args.keep)) + "|")
    for ranking in RANKINGS:
        values = found[ranking]
        rho = spearmanr([values[n] for n in nodes], [found["measured"][n] for n in nodes]).statistic
        cells = []
        for k in args.keep:
            kept = sorted(nodes, key=lambda n: values[n], reverse=True)[:k]
            out = logits(quantize(path, ranges, folder / "int8.onnx", exclude=kept).path, "int8")
            noise = ((out - reference) ** 2).sum() / (reference**2).sum()
            cells.append(f"{noise:.2e}, {(out.argmax(1) == y).mean():.4f}")
        print(f"| {ranking} | {seconds[ranking]:.1f} | {rho:.3f} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds imagenette2-160")
    parser.add_argument("--weights", required=True, nargs="+", metavar="NETWORK=FILE", help="state dicts, ten classes")
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--keep", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = photographs(args.data, args.px, args.calibration, args.images)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for entry in args.weights:
            name, _, weights = entry.partition("=")
            compare(name, weights, data, args, Path(folder))


if __name__ == "__main__":
    main()
