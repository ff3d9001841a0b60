"""What INT8 wins nothing for: against the module's own structure, and against what NVIDIA's compiler makes of it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import sessions
import torch
from torch import nn
from torchvision import models
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.ops import SqueezeExcitation

from hqp_lightning.board.lint import lint
from hqp_lightning.export import (
    Range,
    collect_ranges,
    export_onnx,
    placements,
    quantize,
    quantized_tensors,
    unprofitable,
)
from hqp_lightning.export.engines.rtx import compile_engines
from hqp_lightning.export.forms import write_form
from hqp_lightning.export.squeeze_excite import gate_layers
from hqp_lightning.shipping.known import Known
from hqp_lightning.shipping.placing import fewer_kernels


def written(module, path, size=64):
    torch.manual_seed(0)
    export_onnx(module.eval(), torch.zeros(1, 3, size, size), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """MobileNetV3-small at 128 px: module and float file."""
    torch.manual_seed(0)
    module = models.mobilenet_v3_small(num_classes=10)
    return module, written(module, tmp_path_factory.mktemp("paying") / "model.onnx", 128)


def by_hand(module):
    """The same rules on modules; of a MobileNet's blocks the last convolution reads the depthwise one."""
    thin = set()
    blocks = [m for m in module.modules() if isinstance(m, InvertedResidual)]
    projections = {m.block[-1][0] for m in blocks}
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            few = m.weight[0].numel() < (80 if m in projections else 48) or (m in projections and m.out_channels < 48)
            if few or m.out_channels < 16 or (m.groups > 1 and m.in_channels // m.groups < 16):
                thin.add(m)
        elif isinstance(m, nn.Linear) and (m.in_features < 48 or m.out_features < 16):
            thin.add(m)
    pairs = zip(blocks, blocks[1:], strict=False)
    idle = [b for a, b in pairs if b.use_res_connect and {a.block[-1][0], b.block[0][0]} <= thin]
    return len(thin), len(idle)


def test_the_rules_on_a_mobilenet(small):
    module, path = small
    layers, additions = by_hand(module)
    left = unprofitable(path)
    assert len(left) == layers + additions > 30
    assert sum(n.endswith("Add") for n in left) == additions == 3


def test_the_layers_of_every_gate(small):
    module, path = small
    gates = gate_layers(onnx.load(path).graph)
    assert len(gates) == 2 * sum(isinstance(m, SqueezeExcitation) for m in module.modules())
    assert all("/fc1/" in n or "/fc2/" in n for n in gates)


def test_forms_for_nvidia_have_their_gates_in_float_and_compute_alike(small, tmp_path):
    module, path = small
    x = np.random.default_rng(0).normal(size=(2, 3, 128, 128)).astype(np.float32)
    ranges = collect_ranges(path, [x], threads=1)
    made = quantize(path, ranges, tmp_path / "q.onnx", exclude=unprofitable(path)).path
    form = onnx.load(write_form(made, "trt8", tmp_path / "q.trt8.onnx"))
    dequantized = {n.output[0] for n in form.graph.node if n.op_type == "DequantizeLinear"}
    layers = [n for n in form.graph.node if n.op_type in ("Conv", "Gemm")]
    gates = gate_layers(form.graph)
    assert len(gates) == 18
    assert all(dequantized.isdisjoint(n.input) for n in layers if n.name in gates)
    given = {n.name for n in layers if not dequantized.isdisjoint(n.input)}
    assert given == {n.name for n in layers} - gates - set(unprofitable(path))
    found, expected = (_run(p, x) for p in (tmp_path / "q.trt8.onnx", made))
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    all_float = write_form(path, "trt8", tmp_path / "float.onnx")
    assert np.array_equal(_run(all_float, x), _run(path, x))


def _run(path, x):
    session = sessions.session(path)
    return session.run(None, {"input": x})[0]


def test_a_network_of_wide_layers_keeps_all_but_its_head(tmp_path):
    path = written(models.resnet18(num_classes=10), tmp_path / "m.onnx")
    assert unprofitable(path) == ("/fc/Gemm",)


def test_a_network_of_thin_layers_alone_is_quantized_as_asked(tmp_path):
    thin = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    assert unprofitable(written(thin, tmp_path / "m.onnx")) == ()


class Gated(nn.Module):
    """The squeeze as a mean, as timm writes it, in a network with a SiLU, which multiplies its own input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 7), nn.Conv2d(64, 64, 3)
        self.fc1, self.fc2 = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 1)

    def forward(self, x):
        x = nn.functional.silu(self.a(x))
        gate = self.fc2(nn.functional.silu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.b(x * gate).mean((2, 3))


def test_a_gate_is_found_by_what_it_multiplies(tmp_path):
    path = written(Gated(), tmp_path / "m.onnx")
    assert unprofitable(path) == ()
    assert gate_layers(onnx.load(path).graph) == {"/fc1/Conv", "/fc2/Conv"}


def _int8(path, target, exclude=()):
    ranges = dict.fromkeys(quantized_tensors(path), Range.symmetric(1.0))
    return Path(quantize(path, ranges, target, exclude=exclude).path)


def test_kernels_of_the_real_compiler(compiler, small, tmp_path):
    """float16-typed: 118 with everything in INT8, 74 in FP16."""
    _, path = small
    paying = unprofitable(path)
    form = write_form(_int8(path, tmp_path / "q.onnx", paying), "fp16", tmp_path / "q.fp16.onnx")
    (made,), refused = compile_engines({("pruned", "int8"): form}, tmp_path, ["8.6"])
    assert not refused
    assert made.kernels <= 83
    layers = [p for p in placements(path) if p.weight_axis is not None]
    left = {p.node for p in layers} & {*paying, *gate_layers(onnx.load(path).graph)}
    assert (made.int8_layers, made.int8_asked) == (len(layers) - len(left),) * 2


class Depthwise(nn.Module):
    """A depthwise convolution and an activation, between two convolutions."""

    def __init__(self, activation):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 64, 5), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 3)
        self.activation = activation

    def forward(self, x):
        return self.c(self.activation(self.b(self.a(x)))).mean((2, 3))


@pytest.mark.parametrize("activation", [nn.Hardswish(), nn.SiLU(), nn.ReLU()])
def test_chains_that_a_release_refuses_are_named_and_not_made(activation, tmp_path):
    path = written(Depthwise(activation), tmp_path / "m.onnx")
    everything = lint(_int8(path, tmp_path / "all.onnx"))
    assert [line.split(":")[0] for line in everything] == ([] if isinstance(activation, nn.ReLU) else ["/b/Conv"])
    assert "issue 3385" in "".join(everything) or isinstance(activation, nn.ReLU)
    shipped = _int8(path, tmp_path / "q.onnx", unprofitable(path))
    for form in ("trt8", "fp16"):
        assert lint(write_form(shipped, form, tmp_path / f"q.{form}.onnx")) == []


def test_float16_scales_of_float32_results_are_named(tmp_path):
    path = written(nn.Sequential(nn.Conv2d(3, 16, 7), nn.Flatten(), nn.Linear(16 * 58 * 58, 16)), tmp_path / "m.onnx")
    model = onnx.load(write_form(_int8(path, tmp_path / "q.onnx"), "fp16", tmp_path / "q.fp16.onnx"))
    first = next(n for n in model.graph.node if n.op_type == "DequantizeLinear")
    model.graph.node.append(onnx.helper.make_node("Cast", [first.output[0]], ["wide"], to=1))
    onnx.save(model, tmp_path / "cast.onnx")
    (said,) = lint(tmp_path / "cast.onnx")
    assert said.startswith(f"{first.name}: float16 scale, float32 result")


def test_the_search_takes_out_what_saves_and_leaves_one(tmp_path):
    saves = {"b": 2, "c": -3, "d": 1}

    def cost(exclude):
        asked.append(frozenset(exclude))
        return 100 - sum(saves.get(n, 0) for n in exclude), 50

    asked = []
    assert fewer_kernels(("se",), ["a", "b", "c", "d"], cost) == ("se", "b", "d")
    asked.clear()
    everything = fewer_kernels((), ["b", "d"], cost)
    assert everything == ("b",)  # both would leave no INT8 layer
    assert frozenset("bd") not in asked


def test_an_interrupted_search_goes_on(tmp_path):
    path = tmp_path / "placement.json"
    assert Known(path, {"model": "sha"}).get("a|b", lambda: [3, 4]) == [3, 4]

    def never():
        raise AssertionError

    assert Known(path, {"model": "sha"}).get("a|b", never) == [3, 4]
    assert Known(path, {"model": "another"}).get("a|b", lambda: [5, 6]) == [5, 6]
    assert Known(path, {"model": "sha"}).get("a|b", never) == [3, 4]  # a walk back tries several models in turn
    assert [s["of"]["model"] for s in json.loads(path.read_text())["searches"]] == ["sha", "another"]
    path.write_text("{")
    assert Known(path, {"model": "sha"}).get("a", lambda: [7, 8]) == [7, 8]
