"""`hqp-debug` finds planted faults, and none where there are none."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from hqp_lightning.export import collect_ranges, export_onnx, quantize
from hqp_lightning.export.departures import compare_models
from hqp_lightning.records import ComparedTensor
from hqp_lightning.report.tensors import fault_lines, tensor_cells, worst
from hqp_lightning.standalone.debug_cli import main

LAYER = "/3/Conv"  # the second convolution


@pytest.fixture(scope="module")
def files(own_file, digits, tmp_path_factory):
    """The float file, its INT8 form with every layer quantized, and pictures."""
    folder = tmp_path_factory.mktemp("files")
    images = digits[0][1200:1232].numpy()
    ranges = collect_ranges(own_file, [images], threads=1)
    quantize(own_file, ranges, folder / "int8.onnx")
    np.savez(folder / "images.npz", images=images)
    return own_file, folder / "int8.onnx", folder / "images.npz"


def edited(files, change):
    """The rows of a comparison with a changed INT8 file."""
    model = onnx.load(files[1])
    stored = {i.name: i for i in model.graph.initializer}
    layer = next(n for n in model.graph.node if n.name == LAYER)
    writers = {o: n for n in model.graph.node for o in n.output}
    change(model, stored, layer, writers)
    rows, _ = compare_models(onnx.load(files[0]), model, np.load(files[2])["images"], threads=1)
    return rows


def put(tensor, values):
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def wrong_scale(model, stored, layer, writers):
    tensor = stored[writers[layer.input[1]].input[1]]
    scale = numpy_helper.to_array(tensor).copy()
    scale[5] *= 2
    put(tensor, scale)


def swapped_channels(model, stored, layer, writers):
    weight = writers[layer.input[1]]
    for name in (*weight.input, layer.input[2]):
        values = numpy_helper.to_array(stored[name]).copy()
        values[[2, 7]] = values[[7, 2]]
        put(stored[name], values)


def swapped_inputs(model, stored, layer, writers):
    """As of colours: what the filters read of its input is in another order."""
    weight = stored[writers[layer.input[1]].input[0]]
    values = numpy_helper.to_array(weight).copy()
    values[:, [2, 7]] = values[:, [7, 2]]
    put(weight, values)


def bias_that_wrapped(model, stored, layer, writers):
    """As an int32 in steps of input times weight, of which one channel is beyond 2^31."""
    scales = [numpy_helper.to_array(stored[writers[n].input[1]]).astype(np.float64) for n in layer.input[:2]]
    step = scales[0] * scales[1]
    values = numpy_helper.to_array(stored[layer.input[2]]).astype(np.float64)
    largest = int(np.abs(values).argmax())
    step[largest] = abs(values[largest]) / 2.0**31.5
    wrapped = np.round(values / step).astype(np.int64).astype(np.int32)
    added = {"bias_q": wrapped, "bias_scale": step.astype(np.float32), "bias_zero": np.zeros(len(step), np.int32)}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in added.items())
    at = list(model.graph.node).index(layer)
    model.graph.node.insert(at, helper.make_node("DequantizeLinear", [*added], ["bias"], "bias_dq", axis=0))
    layer.input[2] = "bias"


def bias_that_will_wrap(model, stored, layer, writers):
    """A float bias, as our own file has it, over a weight scale that is too small for it."""
    weight = writers[layer.input[1]]
    scale = numpy_helper.to_array(stored[weight.input[1]]).copy()
    bias = numpy_helper.to_array(stored[layer.input[2]])
    wrong = int(np.abs(bias).argmax())
    scale[wrong] = 1e-12
    put(stored[weight.input[1]], scale)


def range_too_small(model, stored, layer, writers):
    tensor = stored[writers[layer.input[0]].input[1]]
    put(tensor, numpy_helper.to_array(tensor) / np.float32(16))


@pytest.mark.parametrize(
    ("change", "layer", "said"),
    [
        (wrong_scale, LAYER, "scale of 1 of 64 channels: 5 times 2"),
        (swapped_channels, LAYER, "channels in another order: 7 at 2, 2 at 7"),
        (swapped_inputs, LAYER, "reads its input's channels in another order: 7 at 2, 2 at 7"),
        (bias_that_wrapped, LAYER, "bias of 1 of 64 channels: "),
        (bias_that_will_wrap, LAYER, "bias of 1 channel beyond int32"),
        (range_too_small, "/2/Relu", "the scale of the quantizer behind it does not fit"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_planted_faults_are_found_where_they_are(files, change, layer, said):
    faults = {r.layer: r.fault for r in edited(files, change) if r.fault}
    assert list(faults) == [layer]
    assert said in faults[layer]


def test_no_fault_is_found_where_there_is_none(files):
    """Reference: the noise of the logits, computed here."""
    rows = edited(files, lambda *_: None)
    assert [r.fault for r in rows if r.fault] == []
    x = np.load(files[2])["images"]
    outputs = []
    for path in files[:2]:
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        outputs.append(onnxruntime.InferenceSession(str(path), settings).run(None, {"input": x})[0].astype(float))
    expected = ((outputs[1] - outputs[0]) ** 2).sum() / (outputs[0] ** 2).sum()
    assert rows[-1].tensor == "logits"
    assert rows[-1].running == pytest.approx(expected, rel=1e-3)


def test_clipped_and_saturated_and_dead_are_counted(files):
    """Reference: counted by hand from the float activations."""
    rows = {r.layer: r for r in edited(files, range_too_small)}
    model = onnx.load(files[0])
    model.graph.output.append(helper.make_tensor_value_info("/2/Relu_output_0", 1, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = session.run(["/2/Relu_output_0"], {"input": np.load(files[2])["images"]})[0]
    stored = {i.name: numpy_helper.to_array(i) for i in onnx.load(files[1]).graph.initializer}
    beyond = values > 127 * stored["/2/Relu_output_0_scale"] / np.float32(16)
    row = rows["/2/Relu"]
    assert row.clipped == pytest.approx(beyond.mean())
    assert row.saturated == int((beyond.mean((0, 2, 3)) > 0.05).sum())
    assert row.channels == 32

    def kill(model, stored, layer, writers):
        weight, bias = stored[writers[layer.input[1]].input[0]], stored[layer.input[2]]
        for tensor in (weight, bias):
            values = numpy_helper.to_array(tensor).copy()
            values[3] = 0
            put(tensor, values)

    dead = {r.layer: r.dead for r in edited(files, kill)}
    assert dead[LAYER] == 1


def test_factors_and_shifts_on_purpose_are_no_fault(tmp_path):
    """Calibration divides and shifts channels in front of depthwise and 1x1 convolutions, and their readers undo it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Hardswish()]
    net = nn.Sequential(*layers, nn.Conv2d(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    with torch.no_grad():
        net[0].weight.mul_(torch.logspace(-2, 1, 16)[:, None, None, None])
    export_onnx(net.eval(), torch.zeros(1, 3, 12, 12), tmp_path / "a.onnx")
    images = np.random.default_rng(0).normal(size=(16, 3, 12, 12)).astype(np.float32)
    ranges = collect_ranges(tmp_path / "a.onnx", [images], threads=1)
    assert any(r.factors for r in ranges.values())
    quantize(tmp_path / "a.onnx", ranges, tmp_path / "b.onnx")
    rows, how = compare_models(onnx.load(tmp_path / "a.onnx"), onnx.load(tmp_path / "b.onnx"), images, threads=1)
    assert how == "name"
    assert [r.fault for r in rows if r.fault] == []
    assert max(r.alone for r in rows) < 1e-2


def test_files_of_other_names_are_matched_by_position(files):
    model = onnx.load(files[1])
    inner = {o for n in model.graph.node for o in n.output} - {"logits"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                names[k] = f"other_{name}" if name in inner else name
    rows, how = compare_models(onnx.load(files[0]), model, np.load(files[2])["images"], threads=1)
    assert how == "position"
    assert [r.layer for r in rows] == [r.layer for r in edited(files, lambda *_: None)]
    assert [r.fault for r in rows if r.fault] == []


def test_the_command_fits_80_columns_and_writes_json(files, tmp_path, capsys):
    given = [str(f) for f in files]
    assert main([*given, "--json", str(tmp_path / "rows.json"), "--rows", "4"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert " shown: faults, first departure, noisiest" in said[1]
    assert {len(line) for line in said[3:8]} == {80}
    assert max(map(len, said)) <= 80
    content = json.loads((tmp_path / "rows.json").read_text())
    assert (content["pictures"], content["tensors"][-1]["tensor"]) == (16, "logits")
    model = onnx.load(files[1])
    stored = {i.name: i for i in model.graph.initializer}
    writers = {o: n for n in model.graph.node for o in n.output}
    wrong_scale(model, stored, next(n for n in model.graph.node if n.name == LAYER), writers)
    onnx.save(model, tmp_path / "wrong.onnx")
    assert main([given[0], str(tmp_path / "wrong.onnx"), given[2]]) == 1
    assert "at fault: 3 Conv: scale of 1 of 64 channels" in capsys.readouterr().out


def test_the_first_departure_is_among_the_rows():
    noises = {"a": (0.001, 1e-9), "b": (0.02, 1e-3), "c": (0.1, 0.2), "d": (0.2, 0.1), "e": (0.3, 0.05)}
    rows = [
        ComparedTensor(n, n, "Conv", running, alone, None, None, None, 0, 1) for n, (running, alone) in noises.items()
    ]
    assert [r.tensor for r in worst(rows, 2)] == ["b", "c", "d"]
    assert [r.tensor for r in worst(rows, 0)] == list(noises)


def test_another_exporters_file_beside_ours(files, dynamo_file, capsys):
    """Its convolutions have BatchNormalization behind them, ours have it inside."""
    assert main([str(dynamo_file), str(files[1]), str(files[2])]) == 0
    assert "no layer is at fault" in capsys.readouterr().out


def test_what_can_not_be_compared(files, tmp_path, capsys):
    node = helper.make_node("Relu", ["x"], ["y"], "r")
    value = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [value("x", 1, ["n", 1, 8, 8])], [value("y", 1, ["n", 1, 8, 8])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "o.onnx")
    assert main([str(files[0]), str(tmp_path / "o.onnx"), str(files[2])]) == 2
    assert "no layers in common" in capsys.readouterr().err
    assert main([str(files[0]), str(files[1]), str(files[2]), "--rows", "-1"]) == 2


def test_a_node_whose_name_does_not_say_what_it_is_has_its_operator():
    rows = [ComparedTensor(n, n, "Mul", 0.1, 0.0, None, None, None, 0, 1) for n in ("n0_19", "/a/Mul", "node_mul_3")]
    assert [tensor_cells(r)[0] for r in rows] == ["n0_19 Mul", "a Mul", "node_mul_3"]
    assert fault_lines(rows)[0].startswith("the files part first at n0_19 Mul: 10.0 dB")
