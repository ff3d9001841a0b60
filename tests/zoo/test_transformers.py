"""Vision transformers: MLPs pruned, all linear layers in INT8, scored by two runtimes and compiled."""

import copy

import numpy as np
import onnx
import pytest
import sessions
import torch
from classifier import Classifier
from networks import gates_at_inputs
from test_compiled_zoo import compile_all
from torch import nn
from torchvision.models import VisionTransformer
from transformers import BUILDERS, TOKENS, WIDTHS, build

from hqp_lightning import hqp_callbacks
from hqp_lightning.board.layers import fell_back, read_layers, untold
from hqp_lightning.export import collect_ranges, quantize, unprofitable
from hqp_lightning.export.forms import write_form
from hqp_lightning.export.onnx import export_onnx
from hqp_lightning.search import cutting
from hqp_lightning.surgery import Shadow, apply_cut_, layer_macs
from hqp_lightning.surgery.compensation import add_, collecting, parts
from hqp_lightning.surgery.readers import readers

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # attention asserts its sizes

FLOAT = ("LayerNormalization", "ReduceMean", "Erf", "Softmax", "Add", "Mul", "Div")


def images(n, seed=0):
    torch.manual_seed(seed)
    return torch.randn(n, 3, 32, 32)


def halved(name):
    """The network, its shadow and the MLPs' groups, every second neuron of each to be removed."""
    network = build(name)
    shadow = Shadow(network, [images(2)])
    groups = {g.name: g for g in shadow.groups() if g.name in WIDTHS[name]}
    return network, shadow, groups, {n: list(range(0, g.channels, 2)) for n, g in groups.items()}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """``pruned(name)``: folder with ``model.onnx`` and ``model.int8.onnx`` of the network without half of its MLPs."""
    made = {}

    def files(name):
        if name not in made:
            network, shadow, _, removed = halved(name)
            apply_cut_(network, shadow.cut(removed))
            made[name] = folder = tmp_path_factory.mktemp(name)
            path = folder / "model.onnx"
            export_onnx(network, images(1), path)
            left = unprofitable(path)
            ranges = collect_ranges(path, [images(16, 1).numpy()], exclude=left, threads=1)
            quantize(path, ranges, folder / "model.int8.onnx", exclude=left)
        return made[name]

    return files


@pytest.mark.parametrize("name", BUILDERS)
def test_mlps_are_cut_exactly_and_attention_stays(name):
    network, shadow, groups, removed = halved(name)
    assert {n: g.channels for n, g in groups.items()} == WIDTHS[name]
    assert not any(n.group in groups for n in shadow.notes)  # not even approximate
    others = {g.name for g in shadow.groups()} - set(groups)
    assert not any("attn" in n or "attention" in n for n in others)
    for n, g in groups.items():
        layer = network.get_submodule(n)
        reader = network.get_submodule(g.consumers[0].module)
        if name in TOKENS:  # every token takes a neuron's inputs and outputs
            assert g.macs_per_channel == TOKENS[name] * (layer.in_features + reader.out_features)
    masks = {n: torch.ones(g.channels, dtype=torch.float64) for n, g in groups.items()}
    for n, channels in removed.items():
        masks[n][channels] = 0.0
    masked, cut, x = copy.deepcopy(network).double(), shadow.cut(removed), images(2, 2).double()
    before = sum(layer_macs(network, [images(1)])[0].values())
    apply_cut_(network, cut)
    saved = sum(g.macs_per_channel * len(removed[n]) for n, g in groups.items())
    assert cut.macs == pytest.approx(before - saved)
    network = network.double()
    with torch.no_grad():
        dense = masked(x)
        gates_at_inputs(masked, masks, groups.values())
        expected, found = masked(x), network(x)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-9 * float(expected.abs().max()))
    assert float((expected - dense).abs().max()) > 1e-2 * float(dense.abs().max())


@pytest.mark.parametrize("name", ["torchvision_vit", "timm_swin"])
def test_the_second_layer_takes_over_what_the_removed_neurons_did(name):
    """Neurons that repeat others are removed: a regression over the tokens gives all of it back."""
    network, shadow, groups, removed = halved(name)
    with torch.no_grad():
        for n in groups:
            layer = network.get_submodule(n)
            layer.weight[::2], layer.bias[::2] = layer.weight[1::2], layer.bias[1::2]
    cut, gained = shadow.cut(removed), {}
    for part in parts(readers(network, cut)):
        with collecting(network, part) as seen:
            for seed in range(4):
                seen.run((images(8, seed),))
        gained |= seen.solve()
    behind = {g.consumers[0].module for g in groups.values()}
    assert {k.rpartition(".")[0] for k in gained} == behind
    with torch.no_grad():
        x = images(8, 9)
        dense = network(x)
        apply_cut_(network, cut)
        plain = float((network(x) - dense).norm())
        add_(network, gained)
        assert float((network(x) - dense).norm()) < 0.05 * plain


def logits_of(path, x, runtime):
    if runtime == "onnxruntime":
        return sessions.session(path).run(None, {"input": x})[0]
    openvino = pytest.importorskip("openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return openvino.Core().compile_model(str(path), "CPU", options)(x)[0]


@pytest.mark.parametrize("name", BUILDERS)
def test_linear_layers_are_int8_per_channel_and_the_logits_are_close(pruned, name):
    folder, x = pruned(name), images(64, 3).numpy()
    graph = onnx.load(folder / "model.int8.onnx").graph
    writers = {o: n for n in graph.node for o in n.output}
    stored = {i.name: i for i in graph.initializer}

    def rounded(n):
        return [i in writers and writers[i].op_type == "DequantizeLinear" for i in n.input]

    linear = [n for n in graph.node if n.op_type in ("MatMul", "Gemm")]
    products = [n for n in linear if n.input[1] not in stored and not rounded(n)[1]]
    assert len(products) == 2 * len(WIDTHS[name])  # attention's two
    assert not any(any(rounded(n)) for n in graph.node if n in products or n.op_type in FLOAT)
    for n in linear:
        if n not in products:
            weight = writers[n.input[1]]
            assert rounded(n)[:2] == [True, True], n.name
            integers, scale = stored[weight.input[0]], stored[weight.input[1]]
            axis = next(a.i for a in weight.attribute if a.name == "axis")
            assert list(scale.dims) == [integers.dims[axis]]
            assert integers.data_type == onnx.TensorProto.INT8
    expected = logits_of(folder / "model.onnx", x, "onnxruntime")
    for runtime in ("onnxruntime", "openvino"):
        found = logits_of(folder / "model.int8.onnx", x, runtime)
        error, signal = np.square(found - expected).sum(), np.square(expected - expected.mean(1, keepdims=True)).sum()
        assert 10 * np.log10(signal / error) > 25  # dB
        assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.9


@pytest.mark.slow
def test_the_int8_forms_compile_for_three_generations_with_int8_products(compiler, pruned):
    forms = [write_form(pruned(n) / "model.int8.onnx", "fp16", pruned(n) / "model.fp16.onnx") for n in BUILDERS]
    for name, (table, asked) in zip(BUILDERS, compile_all(forms), strict=True):
        layers = read_layers(table)
        assert fell_back(layers, asked) == untold(layers, asked) == [], name
        int8 = {node for layer in layers if layer.precision == "INT8" for node in layer.nodes}
        assert sum("mlp" in node for node in int8) == 2 * len(WIDTHS[name]), name


class Small(Classifier):
    """A vision transformer for digits of 8 px: patches of two, 17 tokens."""

    def __init__(self):
        super().__init__()
        self.net = VisionTransformer(8, 2, 2, 2, 48, 96, num_classes=10)
        self.net.conv_proj = nn.Conv2d(1, 48, 2, 2)


def test_a_transformer_is_pruned_and_quantized_under_the_budget(loaders, make_trainer, tmp_path, monkeypatch):
    added, add = [], cutting.add_
    monkeypatch.setattr(cutting, "add_", lambda network, gained: (added.append(set(gained)), add(network, gained)))
    pruning, export = hqp_callbacks(
        0.1,
        "val_acc",
        tmp_path / "deploy",
        start_epoch=4,
        step=0.1,
        units=("channels",),
        export={"engines": ["onnxruntime"], "latency_runs": 2, "threads": 1},
    )
    model = Small()
    make_trainer(7, [pruning, export]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records].count("kept") >= 1
    widths = [b.mlp[0].out_features for b in model.net.encoder.layers]
    assert sum(widths) < 2 * 96
    assert all(w % 8 == 0 for w in widths)
    fc2 = "encoder.layers.encoder_layer_{}.mlp.3.{}"
    expected = {fc2.format(i, kind) for i in range(2) for kind in ("weight", "bias")}
    assert added
    assert all(names and names <= expected for names in added)
    assert export.report.within_budget
    assert export.report.int8.accuracy >= export.report.pruned.accuracy - 0.03
    assert {q.layer.rpartition("/")[0] for q in export.report.quantization if q.precision == "int8"} >= {
        f"/encoder/layers/encoder_layer_{i}/mlp/mlp.{k}" for i in range(2) for k in (0, 3)
    }
