"""Q/DQ files: structure by walking the graph, numbers by hand, onnxruntime's own quantizer as reference."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import sessions
import torch
import torchvision
from networks import quick
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from torch import nn

from hqp_lightning.core import histogram
from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.export import Range, collect_ranges, quantize, quantized_tensors
from hqp_lightning.export.onnx import export_onnx
from hqp_lightning.export.placement import placements

SIZE = 32


def _session(model):
    return sessions.session(model)


def _batches(count=3, size=4, shape=(3, SIZE, SIZE)):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(size, *shape)).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Float and Q/DQ paths of both architectures, with ranges, made once."""
    folder = tmp_path_factory.mktemp("models")
    result = {}
    for name in ("resnet18", "mobilenet_v3_small"):
        torch.manual_seed(0)
        module = getattr(torchvision.models, name)(num_classes=10)
        path = folder / f"{name}.onnx"
        export_onnx(module, torch.zeros(1, 3, SIZE, SIZE), path)
        ranges = collect_ranges(path, _batches(), threads=1)
        result[name] = (path, ranges, quantize(path, ranges, folder / f"{name}.int8.onnx"))
    return result


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_structure_of_the_quantized_graph(models, name):
    graph = onnx.load(models[name][2].path).graph
    producer = {o: n for n in graph.node for o in n.output}
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}

    def dequantized(tensor):
        return tensor in producer and producer[tensor].op_type == "DequantizeLinear"

    seen = {}
    for node in graph.node:
        seen[node.op_type] = seen.get(node.op_type, 0) + 1
        if node.op_type in ("Conv", "Gemm"):
            assert dequantized(node.input[0]), node.name
            weight = producer[node.input[1]]
            assert weight.op_type == "DequantizeLinear"
            integers, scale, zero = (stored[k] for k in weight.input)
            assert integers.dtype == np.int8
            assert integers.min() >= -127
            assert scale.shape == (integers.shape[0],)
            assert not zero.any()
            assert weight.attribute[0].i == 0
            assert stored[node.input[2]].dtype == np.float32  # the bias, in float
        elif node.op_type == "Add":
            assert [dequantized(k) for k in node.input].count(True) == 1, node.name
            branch = next(k for k in node.input if not dequantized(k))
            assert producer[branch].op_type == "Conv"  # the branch that TensorRT fuses the sum into
        elif node.op_type in ("HardSwish", "HardSigmoid", "Mul", "Relu", "Flatten"):
            assert not any(dequantized(k) for k in node.input), node.name
        elif node.op_type == "QuantizeLinear":
            _, scale, zero = node.input
            assert stored[scale].shape == ()
            assert stored[scale].dtype == np.float32
            assert stored[zero] == np.int8(0)
            assert producer.get(node.input[0]) is None or producer[node.input[0]].op_type != "DequantizeLinear"
    assert seen["QuantizeLinear"] == len(quantized_tensors(models[name][0]))
    assert seen["Conv"] == {"resnet18": 20, "mobilenet_v3_small": 52}[name]
    assert not any(dequantized(o.name) or o.name.endswith("_dq") for o in graph.output)


def test_pooling_inputs_but_not_the_squeeze(models):
    ops = {n.name: n.op_type for n in onnx.load(models["resnet18"][0]).graph.node}
    assert [ops[p.node] for p in placements(models["resnet18"][0])].count("MaxPool") == 1
    path = models["mobilenet_v3_small"][0]
    ops = {n.name: n.op_type for n in onnx.load(path).graph.node}
    assert list(ops.values()).count("GlobalAveragePool") == 10
    assert [ops[p.node] for p in placements(path)].count("GlobalAveragePool") == 1  # the one before the head


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_file_properties(models, name):
    float_path, _, artifact = models[name]
    model = onnx.load(artifact.path)
    assert (model.ir_version, artifact.opset) == (8, 17)
    assert artifact.file_bytes < 0.3 * float_path.stat().st_size
    assert artifact.inputs[0].shape == (3, SIZE, SIZE)


def test_ranges_equal_those_of_the_stored_activations(models):
    path = models["resnet18"][0]
    names = quantized_tensors(path)
    model = onnx.load(path)
    inner = [n for n in names if n != "input"]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, 1, None) for n in inner)
    session = _session(model.SerializeToString())
    stored = {n: [] for n in names}
    for batch in _batches():
        for n, v in zip(inner, session.run(inner, {"input": batch}), strict=True):
            stored[n].append(np.abs(v).ravel())
        stored["input"].append(np.abs(batch).ravel())
    got = collect_ranges(path, _batches(), method="max", threads=1)
    assert set(got) == set(names)
    for n in names:
        assert got[n].high == pytest.approx(np.concatenate(stored[n]).max(), rel=1e-5)
    got = collect_ranges(path, _batches(), method="percentile", percentile=99.0, threads=1)
    for n in names:
        assert got[n].high == pytest.approx(np.percentile(np.concatenate(stored[n]), 99.0), rel=0.02), n


def test_a_large_batch_is_counted_a_few_samples_at_a_time(models, monkeypatch):
    """What is in memory does not grow with the batch, and the ranges are those of the whole."""
    path, ranges, _ = models["resnet18"]
    sizes, update = set(), histogram.update
    monkeypatch.setattr(
        histogram, "update", lambda h, values, *every: (sizes.add(len(values)), update(h, values, *every))[1]
    )
    got = collect_ranges(path, [np.concatenate(_batches())], threads=1)
    highs = ({n: r.high for n, r in found.items()} for found in (got, ranges))
    assert next(highs) == pytest.approx(next(highs), rel=1e-3)  # those of three batches of four
    assert sizes == {8, 4}


def test_quantized_convolution_by_hand(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 2 * 2, 4))
    module[0].weight.data[1] = 0.0  # a channel of zeros must not divide by zero
    path = tmp_path / "m.onnx"
    export_onnx(module, torch.zeros(1, 3, 4, 4), path)
    tensors = quantized_tensors(path)
    ranges = dict(zip(tensors, map(Range.symmetric, (2.0, 3.0)), strict=True))
    artifact = quantize(path, ranges, tmp_path / "q.onnx")
    x = torch.randn(6, 3, 4, 4) * 1.5

    def activation(t, amax):
        return (t / (amax / 127)).round().clamp(-128, 127) * (amax / 127)

    def weight(w):
        scale = w.abs().flatten(1).amax(1).clamp(min=1e-30) / 127
        scale = scale.reshape(-1, *[1] * (w.ndim - 1))
        return (w / scale).round() * scale

    conv, linear = module[0], module[2]
    hidden = nn.functional.conv2d(activation(x, 2.0), weight(conv.weight), conv.bias).flatten(1)
    expected = nn.functional.linear(activation(hidden, 3.0), weight(linear.weight), linear.bias)
    (got,) = _session(artifact.path).run(None, {"input": x.numpy()})
    # one rounding may fall on the other side: an error of one activation step times a weight
    np.testing.assert_allclose(got, expected.detach().numpy(), atol=3.0 / 127)
    assert np.abs(got - expected.detach().numpy()).mean() < 1e-3


def _by_onnxruntime(path, ranges, activations):
    """The file as onnxruntime's quantizer writes it with these ranges."""
    given = {k: TensorData(lowest=np.float32(v.low), highest=np.float32(v.high)) for k, v in ranges.items()}
    options = {
        "ActivationSymmetric": activations == QuantType.QInt8,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
    }
    method = TensorsData(CalibrationMethod.MinMax, given)
    arguments = (onnx.load(path), True, False, QuantType.QInt8, activations, method, [], [], ["Conv", "Gemm"], options)
    return QDQQuantizer(*arguments).quantize_model()


def _without_means(ranges):
    """With which biases stay as they are, as theirs do."""
    return {name: replace(r, means=()) for name, r in ranges.items()}


def test_agrees_with_onnxruntimes_quantizer_where_both_can_write_the_graph(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Hardswish(),
        nn.Flatten(), nn.Linear(8 * 16, 10),
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    export_onnx(module, torch.zeros(1, 3, 8, 8), path)
    batches = _batches(shape=(3, 8, 8))
    ranges = _without_means(collect_ranges(path, batches, threads=1))
    ours = quantize(path, ranges, tmp_path / "ours.onnx")
    theirs = _by_onnxruntime(path, ranges, QuantType.QInt8)
    batch = batches[0]
    (expected,) = _session(theirs.SerializeToString()).run(None, {"input": batch})
    (got,) = _session(ours.path).run(None, {"input": batch})
    # its scale is 2 * amax / 254 in float64, ours amax / 127: a value on the edge may round differently
    assert np.abs(got - expected).mean() < 1e-3 * np.abs(expected).mean()


def test_uint8_against_onnxruntimes_quantizer(tmp_path):
    """The same file, but for the pairs that only theirs has; and by hand what stands on the hard-swish."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Hardswish(), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    export_onnx(module, torch.zeros(1, 3, 8, 8), path)
    batches = _batches(shape=(3, 8, 8))
    ranges = _without_means(collect_ranges(path, batches, threads=1, activation_type="uint8"))
    lows = [r.low for r in ranges.values()]
    assert lows[0] < -1  # the image
    assert lows[1] == 0  # behind the ReLU
    assert -0.375 <= lows[2] < -0.1  # behind the hard-swish
    ours = quantize(path, ranges, tmp_path / "ours.onnx")
    theirs = _by_onnxruntime(path, ranges, QuantType.QUInt8)
    stored, expected = (
        {i.name: numpy_helper.to_array(i) for i in m.graph.initializer} for m in (onnx.load(ours.path), theirs)
    )
    for name in ranges:
        assert stored[f"{name}_scale"] == pytest.approx(expected[f"{name}_scale"], rel=1e-6)
        assert stored[f"{name}_zero_point"] == expected[f"{name}_zero_point"]
        assert stored[f"{name}_zero_point"].dtype == np.uint8
    (want,) = _session(theirs.SerializeToString()).run(None, {"input": batches[0]})
    (got,) = _session(ours.path).run(None, {"input": batches[0]})
    assert np.abs(got - want).mean() < 1e-3 * np.abs(want).mean()


def test_uint8_is_closer_to_float(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Hardswish(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    for layer in module[::2]:
        layer.weight.data *= 6  # far enough from zero that hard-swish bends
    module.extend([nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)])
    path, batch = tmp_path / "m.onnx", _batches(1)[0]
    export_onnx(module, torch.zeros(1, 3, SIZE, SIZE), path)
    (expected,) = _session(str(path)).run(None, {"input": batch})

    def noise(activation_type):
        ranges = collect_ranges(path, _batches(), threads=1, activation_type=activation_type)
        artifact = quantize(path, ranges, tmp_path / f"{activation_type}.onnx")
        return np.square(_session(artifact.path).run(None, {"input": batch})[0] - expected).sum()

    assert noise("uint8") < 0.6 * noise("int8")


def test_without_torch(tmp_path):
    """A file is calibrated and quantized where torch is not installed."""
    torch.manual_seed(0)
    path, x = tmp_path / "float.onnx", _batches(1)
    export_onnx(quick("quick", 10).eval(), torch.zeros(1, 3, SIZE, SIZE), path)
    np.save(tmp_path / "x.npy", x[0])
    program = """
import sys
import numpy as np
sys.modules["torch"] = None
from hqp_lightning.export import collect_ranges, quantization_noise, quantize
model, x = sys.argv[1], np.load("x.npy")
ranges = collect_ranges(model, [x])
assert len(quantization_noise(model, ranges, x[:1])) == 5
quantize(model, ranges, "int8.onnx")
"""
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, cwd=tmp_path, timeout=120)
    here = quantize(path, collect_ranges(path, x), tmp_path / "here.onnx")
    assert (tmp_path / "int8.onnx").read_bytes() == (tmp_path / "here.onnx").read_bytes()
    assert here.opset == 17


def test_close_to_float(models):
    for path, _, artifact in models.values():
        batch = _batches(1)[0]
        (expected,) = _session(str(path)).run(None, {"input": batch})
        (got,) = _session(artifact.path).run(None, {"input": batch})
        assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.95


def test_excluded_nodes_stay_float(models, tmp_path):
    path, ranges, _ = models["resnet18"]
    first = placements(path)[0].node
    artifact = quantize(path, ranges, tmp_path / "q.onnx", exclude=[first])
    graph = onnx.load(artifact.path).graph
    stored = {i.name for i in graph.initializer}
    node = next(n for n in graph.node if n.name == first)
    assert node.input[0] == "input"
    assert node.input[1] in stored
    assert not any(n.op_type == "QuantizeLinear" and n.input[0] == "input" for n in graph.node)
    everything = [p.node for p in placements(path)]
    bare = quantize(path, {}, tmp_path / "none.onnx", exclude=everything)
    batch = _batches(1)[0]
    (expected,) = _session(str(path)).run(None, {"input": batch})
    np.testing.assert_allclose(_session(bare.path).run(None, {"input": batch})[0], expected, rtol=1e-5, atol=1e-5)


def test_residual_is_the_shorter_branch_whatever_the_order(tmp_path):
    class Block(nn.Module):
        def __init__(self, swap):
            super().__init__()
            self.a, self.b, self.skip, self.swap = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(3, 4, 1), swap
            self.head = nn.Linear(4 * 16, 2)

        def forward(self, x):
            long, short = self.b(self.a(x).relu()), self.skip(x)
            return self.head((short + long if self.swap else long + short).flatten(1))

    for swap in (False, True):
        path = tmp_path / f"{swap}.onnx"
        export_onnx(Block(swap), torch.zeros(1, 3, 4, 4), path)
        nodes = {n.name: n for n in onnx.load(path).graph.node}
        (place,) = [p for p in placements(path) if nodes[p.node].op_type == "Add"]
        assert "skip" in place.tensor


def test_adding_a_constant_is_no_residual(tmp_path):
    class Shift(nn.Linear):
        def forward(self, x):
            return (super().forward(x) + 3.0) + torch.ones(2)

    path = tmp_path / "m.onnx"
    export_onnx(Shift(4, 2), torch.zeros(1, 4), path)
    assert "Add" in {n.op_type for n in onnx.load(path).graph.node}
    assert quantized_tensors(path) == ("input",)


def test_adding_sizes_is_no_residual(tmp_path):
    """They are integers, or floats without a batch axis; the residual beside them is one."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            y = self.a(x)
            y = y + self.b(y)
            size = (y.shape[2] // 2 + y.shape[3] // 4, y.shape[3] // 2)
            factor = y.shape[2] / 2 + y.shape[3] / 4
            return nn.functional.interpolate(y, size=size).mean((2, 3)) * factor

    path = tmp_path / "m.onnx"
    x = torch.randn(2, 3, 16, 16)
    export_onnx(Net(), x[:1], path)
    adds = [n for n in onnx.load(path).graph.node if n.op_type == "Add"]
    (residual,) = [p for p in placements(path) if p.node in {n.name for n in adds}]
    assert len(adds) > 1
    assert residual.tensor == next(n for n in onnx.load(path).graph.node if n.op_type == "Conv").output[0]
    quantize(path, collect_ranges(path, [x.numpy()]), tmp_path / "q.onnx")
    _session(str(tmp_path / "q.onnx"))


def test_matmul_of_a_linear_on_sequences(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Flatten(), nn.Linear(20, 3))
    path = tmp_path / "m.onnx"
    export_onnx(module, torch.zeros(1, 4, 6), path)
    batches = _batches(shape=(4, 6))
    artifact = quantize(path, collect_ranges(path, batches, threads=1), tmp_path / "q.onnx")
    ops = [n.op_type for n in onnx.load(artifact.path).graph.node]
    assert ops.count("DequantizeLinear") == 4
    (got,) = _session(artifact.path).run(None, {"input": batches[0]})
    expected = module(torch.from_numpy(batches[0])).detach().numpy()
    assert np.abs(got - expected).max() < 0.1


def test_what_the_rounding_of_weights_adds_on_average_comes_off(tmp_path):
    """Activations of whole steps, which are exact, so that only the weights are rounded."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 5, 1, bias=False))
    path, x = tmp_path / "m.onnx", np.random.default_rng(0).integers(0, 128, (1, 6, 9, 9)).astype(np.float32)
    export_onnx(module, torch.from_numpy(x), path)
    ranges = collect_ranges(path, [x], method="max", threads=1)
    assert ranges["input"].means == pytest.approx(x.mean((0, 2, 3)), rel=1e-6)
    for exclude, exactly in (("/1/Conv", True), ("/0/Conv", False)):  # what the second one reads is rounded, too
        got, plain = (
            _session(quantize(path, given, tmp_path / "q.onnx", exclude=[exclude]).path).run(None, {"input": x})[0]
            for given in (ranges, _without_means(ranges))
        )
        expected = module(torch.from_numpy(x)).detach().numpy()
        error, before = (np.abs((y - expected).mean((0, 2, 3))).mean() for y in (got, plain))
        assert error < (1e-3 if exactly else 0.5) * before


@pytest.mark.parametrize("activation_type", ["int8", "uint8"])
def test_what_a_maximum_alone_reads_loses_nothing_more(activation_type, tmp_path):
    """Two maxima in a row, of what no other reads: the file without the quantizers before them computes the same."""
    torch.manual_seed(0)
    pools = nn.MaxPool2d(2), nn.MaxPool2d(3, stride=1, padding=1)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pools, nn.Conv2d(8, 4, 3))
    path = tmp_path / "m.onnx"
    export_onnx(module, torch.zeros(1, 3, 16, 16), path)
    x = _batches(1, 4, (3, 16, 16))[0]
    ranges = collect_ranges(path, [x], activation_type=activation_type, threads=1)
    files = [quantize(path, ranges, tmp_path / f"{k}.onnx", exclude=e).path for k, e in enumerate(((), _maxima(path)))]
    assert [[n.op_type for n in onnx.load(f).graph.node].count("QuantizeLinear") for f in files] == [4, 2]
    got, expected = (_session(f).run(None, {"input": x})[0] for f in files)
    np.testing.assert_array_equal(got, expected)
    assert len({v.item() for n, v in _stored(files[0]).items() if n.endswith("_scale") and v.size == 1}) == 2


def _maxima(path):
    return [n.name for n in onnx.load(path).graph.node if n.op_type == "MaxPool"]


def _stored(path):
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def test_a_dead_tensor_gets_a_usable_scale(tmp_path):
    path = tmp_path / "m.onnx"
    export_onnx(nn.Linear(4, 2), torch.zeros(1, 4), path)
    ranges = collect_ranges(path, [np.zeros((2, 4), np.float32)], threads=1)
    assert ranges == {"input": Range(0.0, 0.0, means=(0.0,) * 4)}
    artifact = quantize(path, ranges, tmp_path / "q.onnx")
    scales = [numpy_helper.to_array(i) for i in onnx.load(artifact.path).graph.initializer if i.name == "input_scale"]
    assert scales[0] == pytest.approx(1 / 254)


@pytest.mark.parametrize("activation_type", ["int8", "uint8"])
@pytest.mark.parametrize("layer", [nn.Linear, lambda i, o: nn.Conv2d(i, o, 1)])
def test_nearly_dead_channels_keep_their_bias(layer, activation_type, tmp_path):
    """onnxruntime makes an int32 of a bias, in steps of input times weight; a scale of zero TensorRT refuses."""
    torch.manual_seed(0)
    net = nn.Sequential(layer(3, 4), nn.ReLU(), layer(4, 4))
    with torch.no_grad():
        for channel, (size, bias) in enumerate([(1.0, 0.1), (1e-9, 0.5), (1e-44, 0.25), (0.0, 0.125)]):
            net[0].weight[channel] *= size
            net[0].bias[channel] = bias
        net[2].weight.copy_(torch.eye(4).reshape(net[2].weight.shape))  # dead channels of its own beside live ones
        net[2].bias.zero_()
    x = torch.randn(8, 3) if layer is nn.Linear else torch.randn(8, 3, 4, 4)
    float_path, path = tmp_path / "m.onnx", tmp_path / "q.onnx"
    export_onnx(net, x[:1], float_path)
    quantize(float_path, collect_ranges(float_path, [x.numpy()], activation_type=activation_type), path)
    scales = [numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer if i.name.endswith("_scale")]
    assert all((s >= 1e-7).all() for s in scales)  # what the float16 form holds
    (logits,) = _session(str(path)).run(None, {"input": x.numpy()})
    assert np.abs(logits - net(x).detach().numpy()).max() < 0.03


def test_tensors_of_nearly_nothing_get_a_scale_that_float32_holds(tmp_path):
    layer, path = nn.Linear(4, 2), tmp_path / "m.onnx"
    torch.nn.init.constant_(layer.weight, 4e-44)
    export_onnx(layer, torch.zeros(1, 4), path)
    artifact = quantize(path, {"input": Range.symmetric(4e-44)}, tmp_path / "q.onnx")
    scales = [numpy_helper.to_array(i) for i in onnx.load(artifact.path).graph.initializer if i.name.endswith("_scale")]
    assert len(scales) == 2
    assert all((s >= 2.0**-60).all() for s in scales)


def test_clear_errors(models, tmp_path):
    path, ranges, _ = models["resnet18"]
    with pytest.raises(ExportError, match="no calibration batches"):
        collect_ranges(path, [])
    with pytest.raises(ExportError, match=r"shape \(1, 3, 8, 8\), expected"):
        collect_ranges(path, [np.zeros((1, 3, 8, 8), np.float32)])
    with pytest.raises(ConfigurationError, match="NaN"):
        collect_ranges(path, [np.full((1, 3, SIZE, SIZE), np.nan, np.float32)])
    with pytest.raises(ConfigurationError, match="calibration method"):
        collect_ranges(path, _batches(1), method="kl")
    with pytest.raises(ExportError, match="no range for tensor 'input'"):
        quantize(path, {k: v for k, v in ranges.items() if k != "input"}, tmp_path / "q.onnx")
    with pytest.raises(ExportError, match="'layer9', which is no quantizable node"):
        quantize(path, ranges, tmp_path / "q.onnx", exclude=["layer9"])
    with pytest.raises(ExportError, match="no ONNX file"):
        quantized_tensors(tmp_path / "absent.onnx")
