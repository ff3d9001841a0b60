"""The inspector's JSON as the releases write it."""

import json

import pytest

from hqp_lightning.board.layers import fell_back, read_layers, table, untold
from hqp_lightning.board.make import fallback_lines
from hqp_lightning.errors import ExportError


def _layer(name, kind, source, target, weights=None, **more):
    row = {"Name": name, "LayerType": kind, "Inputs": [{"Name": "x", **source}], "Outputs": [{"Name": "y", **target}]}
    return {**row, **({"Weights": {"Type": weights, "Count": 9}} if weights else {}), **more}


def _tensor(text):
    return {"Location": "Device", "Dimensions": [1, 64, 28, 28], "Format/Datatype": text}


# As TensorRT 8 words its formats; 10 writes "Half" and "Float", and the nodes in Metadata.
INT8 = _tensor("Thirty-two wide channel vectorized row major Int8 format")
FP16 = _tensor("Channel major FP16 format where channel % 8 == 0")
FP32 = _tensor("Row major linear FP32")
ROWS = [
    _layer("Reformatting CopyNode for Input Tensor 0 to a", "Reformat", FP32, INT8),
    _layer("/a/Conv + /a/Relu", "CaskConvolution", INT8, INT8, "Int8"),
    _layer("/b/Conv || /c/Conv", "CaskConvolution", FP16, FP16, "Half"),
    _layer(
        "__myl_Conv",
        "kgen",
        _tensor("Half"),
        _tensor("Float"),
        Metadata="\x1e[ONNX Layer: /d/Conv]\x1e[ONNX Layer: /e]",
    ),
    _layer("/f/Gemm", "gemm", FP32, FP32, "Float"),
    {"Name": "silent", "LayerType": "NoOp", "Inputs": [], "Outputs": []},
]


def test_each_layer_has_its_precision():
    layers = read_layers(json.dumps({"Layers": ROWS, "Bindings": ["x", "y"]}))
    assert [x.precision for x in layers] == ["FP32", "INT8", "FP16", "FP16", "FP32", "?"]
    assert [x.output for x in layers] == ["INT8", "INT8", "FP16", "FP32", "FP32", "?"]
    lines = table(layers).splitlines()
    assert lines[2].split() == ["INT8", "INT8", "CaskConvolution", "/a/Conv", "+", "/a/Relu"]
    assert lines[-1] == "6 layers: 2 FP32, 2 FP16, 1 INT8, 1 ?"


def test_fallback_is_found_in_fused_names_and_metadata():
    layers = read_layers(json.dumps({"Layers": ROWS}))
    names = [x.name for x in fell_back(layers, ["/a/Conv", "/c/Conv", "/d/Conv"])]
    assert names == ["/b/Conv || /c/Conv", "__myl_Conv"]
    assert fell_back(layers, ["/Conv", "silent"]) == []  # whole names only; where the inspector is silent, no verdict


def test_what_the_report_does_not_name_is_not_called_int8():
    foreign = _layer("{ForeignNode[/a/Conv.../b/Gemm]}", "Myelin", INT8, INT8)
    rows = [foreign, _layer("/c/Conv", "CaskConvolution", INT8, INT8, "Int8"), {**ROWS[-1], "Name": "/d/Conv"}]
    layers = read_layers(json.dumps({"Layers": rows}))
    (line,) = fallback_lines(layers, ["/a/Conv", "/b/Gemm", "/c/Conv", "/d/Conv"])
    assert line == (
        "4 convolutions and matrix products asked for INT8, 0 layers fell back, of 3 TensorRT does not tell "
        "(/a/Conv, /b/Gemm, /d/Conv)"
    )
    (line,) = fallback_lines(layers, ["/c/Conv"])
    assert "does not tell" not in line


def test_control_characters_stand_in_the_metadata_as_they_are():
    text = json.dumps({"Layers": [_layer("x", "k", INT8, INT8, Metadata="[ONNX Layer: /a]|[ONNX Layer: /b]")]})
    (layer,) = read_layers(text.replace("|", "\x1e"))
    assert layer.nodes == ("x", "/a", "/b")


def test_an_engine_without_details_is_refused():
    with pytest.raises(ExportError, match="only the names of its layers"):
        read_layers('{"Layers": ["/a/Conv + /a/Relu"]}')
    for text in ("", '{"Layers": [}', "[]"):
        with pytest.raises(ExportError, match="report of the layers cannot be read"):
            read_layers(text)


def test_products_side_by_side_are_named_without_spaces():
    """As TensorRT for RTX 1.7 names one kernel of three."""
    row = '{"Name": "/a/q+/a/k+/a/v", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Int8"}], "Outputs": []}'
    layers = read_layers(f'{{"Layers": [{row}]}}')
    assert layers[0].nodes == ("/a/q", "/a/k", "/a/v")
    assert untold(layers, ["/a/q", "/a/v"]) == fell_back(layers, ["/a/k"]) == []
