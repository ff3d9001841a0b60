"""NVIDIA's real compiler, where it is installed, on the small export folder; its log by hand; its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper

from hqp_lightning.board import rtx
from hqp_lightning.board.cli import main
from hqp_lightning.board.kernels import inspection_of, kernel_count, moved_bytes
from hqp_lightning.board.layers import fell_back, read_layers
from hqp_lightning.board.provenance import sha256
from hqp_lightning.errors import ExportError

LOG = """Layers:
Name: __mye1_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: /a, b/Conv_myl0_1, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1,16,8,8], Strides: [1024,1,128,16], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: [8,16,1,1], Strides: [16,1,16,16], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Outputs: [ { Name: y, Dimensions: [1,8,8,8], Strides: [512,1,64,8], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: t, StreamId: 0, Metadata: 
Name: /fc/Gemm_myl0_2, LayerType: gemm, Inputs: [ { Name: y, Dimensions: [1,8], Strides: [8,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: z, Dimensions: [], Strides: [], StrideOrder: [], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: t, StreamId: 0, Metadata: 

I/O Tensors:
 Name: x, IOMode: Input"""  # noqa: E501, W291 - as it is written


def test_the_log_by_hand():
    table = inspection_of(LOG)
    layers = read_layers(table)
    assert [(x.name, x.precision, x.output) for x in layers[1:]] == [
        ("/a, b/Conv", "INT8", "FP32"),
        ("/fc/Gemm", "FP16", "FP16"),
    ]
    assert kernel_count(table) == 2  # sizes are worked out on the CPU
    assert moved_bytes(table) == (1024 + 128 + 4 * 512) + (2 * 8 + 2)
    assert [x.name for x in fell_back(layers, ["/a, b/Conv", "/fc/Gemm"])] == ["/fc/Gemm"]
    with pytest.raises(ExportError, match="in words that this version does not know"):
        inspection_of("Layers:\nother words")


def test_engines_of_two_generations_from_the_folder(compiler, exported, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["build", str(exported / "model.int8.onnx"), "-o", "m.engine", "--rtx", "8.6,12.0"]) == 0
    said = capsys.readouterr().out
    assert "tensorrt/model.int8.fp16.onnx" in said
    for name, capability in (("m.sm86.engine", "8.6"), ("m.sm120.engine", "12.0")):
        assert f"{name}: for compute capability {capability}" in said
        note = json.loads(Path(f"{name}.json").read_text())
        assert note["gpu"] == {"compute_capability": capability}
        assert note["manifest"].endswith("manifest.json")
        assert main(["inspect", name]) == 0  # without a GPU
        assert "3 convolutions and matrix products asked for INT8, 0 layers fell back" in capsys.readouterr().out
        assert main(["inspect", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["Layers"]
    Path("m.sm86.layers.json").unlink()
    assert main(["inspect", "m.sm86.engine"]) == 1
    assert "copy m.sm86.layers.json, too" in capsys.readouterr().err


def _unsupported(path):
    """A model that no TensorRT parses."""
    entry = helper.make_tensor_value_info("input", 1, ["n", 3, 4, 4])
    node = helper.make_node("NoSuchOperator", ["input"], ["out"], "odd")
    graph = helper.make_graph([node], "g", [entry], [helper.make_tensor_value_info("out", 1, ["n", 3, 4, 4])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_refusals_are_one_line_and_cost_the_others_nothing(compiler, exported, tmp_path, capsys):
    engine = tmp_path / "m.engine"
    command = ["build", str(exported / "model.int8.onnx"), "-o", str(engine), "--rtx"]
    assert main([*command, "8.6,8.7"]) == 0
    said = capsys.readouterr().out
    assert "does not compile for compute capability 8.7, but for 7.5, 8.0, 8.6" in said
    assert main([*command, "8.7"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["build", str(exported / "model.onnx"), "-o", str(engine), "--precision", "fp32", "--rtx", "7.5"]) == 1
    said = capsys.readouterr().err
    assert "take --precision fp16 (" in said
    assert "FP32 GEMM is not supported" in said
    assert main([*command, "7.5"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == (
        "warning: 2 of 3 layers that should be INT8 are not: /0/Conv in FP16, /2/Conv in FP16"
    )
    with pytest.raises(ExportError, match="cannot parse .*: an operator that this release does not have"):
        rtx.compile_rtx(_unsupported(tmp_path / "odd.onnx"), engine, "8.6")


def test_what_is_not_in_int8_is_one_line_however_many_layers():
    def made(*floats):
        return rtx.Compiled(Path("m.engine"), "7.5", "1.7", 9, 9, 4, floats).warnings()

    assert made() == []
    (said,) = made("a in FP16", "b in FP16", "c in FP16", "d in FP16")
    assert said == (
        "warning: none of the 4 layers that should be INT8 is (a in FP16, b in FP16, c in FP16, ...): INT8 wins "
        "nothing there, build model.onnx in FP16"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rtx", "sm_86"], "compute capability 'sm_86': expected one such as '8.6'"),
        (["--rtx", "8.6", "--timing-cache", "c"], "--rtx compiles without timing kernels"),
        (["--rtx", "8.6", "--workspace", "0"], "workspace of 0 MB: expected at least 1"),
    ],
)
def test_bad_options(options, said, exported, tmp_path, capsys):
    assert main(["build", str(exported / "model.int8.onnx"), "-o", str(tmp_path / "m.engine"), *options]) == 1
    assert said in capsys.readouterr().err


def test_what_is_not_there_is_said(monkeypatch, exported, tmp_path):
    monkeypatch.setattr(rtx.platform, "machine", lambda: "aarch64")
    assert rtx.missing() == (
        "NVIDIA's compiler skipped: TensorRT for RTX exists for x86-64 alone, this machine is aarch64"
    )
    monkeypatch.setattr(rtx.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(rtx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"not installed \(pip install 'hqp-lightning\[rtx\]'\)"):
        rtx.compile_rtx(exported / "model.onnx", tmp_path / "m.engine", "8.6")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with status -11: without a word"),
        ("raise SystemExit('bad library')", "ended with status 1: bad library"),
        ("import time; time.sleep(60)", "did not answer within 0.2 s"),
        ("""print('{"error": "no reason"}')""", "no reason"),
    ],
)
def test_a_compiler_that_ends_or_hangs_is_one_line(code, said, monkeypatch, exported, tmp_path):
    monkeypatch.setattr(rtx, "missing", lambda: None)
    monkeypatch.setattr(rtx, "_START", code)
    monkeypatch.setattr(rtx, "_SECONDS", 0.2 if "sleep" in code else 60)
    with pytest.raises(ExportError, match=said):
        rtx.compile_rtx(exported / "model.onnx", tmp_path / "m.engine", "8.6")
    assert not (tmp_path / "m.engine").exists()


def test_an_unloadable_library_is_one_line():
    code = "import sys; sys.modules['tensorrt_rtx'] = None; "
    code += "from hqp_lightning.board.rtx_process import main; main(sys.argv[1])"
    job = json.dumps({"onnx": "a", "engine": "b", "capabilities": ["8.6"], "batch_size": 1, "max_batch": 1})
    done = subprocess.run([sys.executable, "-c", code, job], capture_output=True, text=True, check=True)
    assert "tensorrt_rtx does not load here" in json.loads(done.stdout)["error"]


def test_an_engine_for_others_needs_their_gpu(board, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", board().trt)
    engine = tmp_path / "m.sm86.engine"
    engine.write_bytes(b"PLAN")
    note = {"engine_sha256": sha256(engine), "gpu": {"compute_capability": "8.6"}, "tensorrt_rtx": "10.3.0"}
    Path(f"{engine}.json").write_text(json.dumps(note))
    assert main(["bench", str(engine)]) == 1
    assert "for GPUs of (compute capability 8.6), here is Orin (8.7)" in capsys.readouterr().err
