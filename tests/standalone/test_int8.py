"""`hqp-int8`: a run's own file gives the run's own INT8 file; budgets; what is refused."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from classifier import Classifier
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import Int8Export
from hqp_lightning.board.arrays import first
from hqp_lightning.export import collect_ranges
from hqp_lightning.report import read_json
from hqp_lightning.standalone.int8_cli import main

ALONE = (
    "import sys; from hqp_lightning.standalone.int8_cli import main; code = main(sys.argv[1:]); "
    "assert not {'torch', 'lightning', 'torchvision'} & set(sys.modules); sys.exit(code)"
)


def hqp_int8(*arguments):
    return main([*map(str, arguments), "--threads", "1", "--rtx", ""])


@pytest.fixture(scope="module")
def run(network, digits, pictures, tmp_path_factory):
    """What Int8Export leaves of the network, calibrated on the validation digits, in batches of another size."""
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    model, folder = Classifier(), tmp_path_factory.mktemp("run")
    model.net = network
    loader = DataLoader(TensorDataset(x, y), 20)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hqp_lightning.shipping.compiling.missing", lambda: "no compiler in this test")
        export = Int8Export(folder, "val_acc", 0.5, threads=1, calibration_data="val", latency_runs=1)
        export.export(model, loader, loader, accelerator="cpu")
    return folder


def test_the_runs_own_file_gives_the_runs_int8_byte_for_byte_without_torch(run, pictures, tmp_path):
    given = [run / "model.onnx", pictures, "-o", tmp_path, "--threads", "1", "--rtx", "", "--max-drop", "0.5"]
    done = subprocess.run([sys.executable, "-c", ALONE, *map(str, given)], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    stages = "200 pictures", "calibrating on 200", "timing float and INT8", "writing files"
    assert all(a.startswith(f"hqp: {b}") for a, b in zip(done.stderr.splitlines(), stages, strict=True)), done.stderr
    assert "WITHIN BUDGET" in done.stdout
    assert (tmp_path / "model.onnx").read_bytes() == (run / "model.onnx").read_bytes()
    assert (tmp_path / "model.int8.onnx").read_bytes() == (run / "model.int8.onnx").read_bytes()
    ours, theirs = (read_json(folder / "report.json") for folder in (tmp_path, run))
    assert ours.baseline.accuracy == pytest.approx(theirs.baseline.accuracy)
    assert ours.int8.accuracy == pytest.approx(theirs.int8.accuracy)
    assert (ours.baseline.macs, ours.quantization) == (theirs.baseline.macs, theirs.quantization)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {p.name for p in run.iterdir()} - {"model.dense.onnx", "pruned.ckpt"}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["calibration"]["pictures"] == 200


def test_a_file_of_another_exporter(dynamo_file, pictures, tmp_path, capsys):
    assert hqp_int8(dynamo_file, pictures, "-o", tmp_path) == 0
    said = capsys.readouterr().out
    assert "2 BatchNormalization folded" in said
    assert "opset 20: " in said.lower()
    assert max(map(len, said.partition("WITHIN")[0].splitlines())) <= 80
    report = read_json(tmp_path / "report.json")
    assert report.budget.monitor == "top-1"
    assert report.baseline.accuracy > 0.8
    assert report.int8.accuracy > report.baseline.accuracy - 0.01
    assert [r for r in report.engines if r.model == "pruned"] == []


def test_the_noisiest_layers_stay_in_float(own_file, pictures, tmp_path, caplog):
    """Reference: the budget itself, and the same file without one."""
    assert hqp_int8(own_file, pictures, "-o", tmp_path / "a", "--max-noise", "10") == 0
    first = read_json(tmp_path / "a" / "report.json")
    assert first.budget.mode == "min"
    asked = round(-10 * np.log10(first.int8.accuracy) + 0.55, 2)
    assert hqp_int8(own_file, pictures, "-o", tmp_path / "b", "--max-noise", asked) == 0
    report = read_json(tmp_path / "b" / "report.json")
    assert -10 * np.log10(report.int8.accuracy) >= asked
    in_float = {q.layer for q in report.quantization if q.precision == "float"}
    assert f"where at least {asked:.2f} dB are asked for" in " ".join(report.notes)
    assert " ".join(report.notes).count("Left in float to stay within the budget") == 1
    assert "Left in float" not in caplog.text  # the report's note says it
    assert in_float > {q.layer for q in first.quantization if q.precision == "float"}
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["accuracy"] is None


@pytest.mark.parametrize("size", [3, 11])
def test_the_size_of_batches_does_not_matter(own_file, size, monkeypatch):
    """Rounding depends on how many samples are computed at a time, so that has to be the same."""
    fed, run = [], onnxruntime.InferenceSession.run

    def watched(self, names, values, *rest):
        fed.extend([values["input"]] if names else [])
        return run(self, names, values, *rest)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", watched)
    samples = np.random.default_rng(0).normal(size=(11, 1, 8, 8)).astype(np.float32)
    collect_ranges(own_file, (samples[k : k + size].copy() for k in range(0, 11, size)), method="max", threads=1)
    assert [len(x) for x in fed[:2]] == [8, 3]
    np.testing.assert_array_equal(np.concatenate(fed[:2]), samples)
    assert len(first([samples[k : k + size] for k in range(0, 11, size)], 7)) == 7


def test_nvidias_compiler_makes_engines_of_the_float_and_the_int8_file(compiler, dynamo_file, pictures, tmp_path):
    given = [dynamo_file, pictures, "-o", tmp_path, "--threads", "1", "--limit", "16", "--max-drop", "0.5"]
    assert main([*map(str, given), "--rtx", "8.6"]) == 0
    made = {e.precision: e for e in read_json(tmp_path / "report.json").compiled}
    assert {(e.model, e.precision, e.compute_capability) for e in made.values()} == {
        ("dense", "fp16", "8.6"),
        ("dense", "int8", "8.6"),
    }
    assert (made["int8"].int8_layers, made["int8"].int8_asked, made["int8"].in_float) == (2, 2, ())
    assert made["fp16"].int8_asked == 0
    assert {e["path"] for e in json.loads((tmp_path / "manifest.json").read_text())["engines"]} == {
        e.path for e in made.values()
    }
    assert all((tmp_path / e.path).stat().st_size == e.engine_bytes for e in made.values())


def test_no_layer_brings_it_within(own_file, pictures, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr("hqp_lightning.shipping.quantizing._LOUD", 0.0)  # so that both tries advise
    assert hqp_int8(own_file, pictures, "-o", tmp_path, "--max-noise", "99", "--limit", "16") == 1
    assert "OVER BUDGET" in capsys.readouterr().out
    assert (tmp_path / "report.html").is_file()
    first, second = (r.getMessage() for r in caplog.records if "SQNR of only" in r.getMessage())
    assert re.search(r"Over the budget up to [1-9] of them go back to float\.", first)
    assert re.search(r"Even [1-9] of them in float did not bring it within the budget\.", second)
    for advice in (first, second):
        assert "max_float_layers" not in advice
        assert {*re.findall(r"--[a-z-]+", advice)} == {"--calibration", "--activation-type"}


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """A network of pictures, by hand, that tells reds from blues; and pictures, in folders and flat."""
    folder = tmp_path_factory.mktemp("coloured")
    weight = np.zeros((16, 3, 3, 3), np.float32)
    weight[0::2, 0], weight[1::2, 2] = 1 / 9, 1 / 9
    head = np.zeros((2, 16), np.float32)
    head[0, 0::2], head[1, 1::2] = 1, 1
    helper, to = onnx.helper, onnx.numpy_helper.from_array
    for layout, shape in (("NCHW", [1, 3, 16, 16]), ("NHWC", [1, 16, 16, 3])):
        nodes = [] if layout == "NCHW" else [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])]
        nodes += [
            helper.make_node("Conv", ["x" if layout == "NCHW" else "t", "w"], ["c"]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "h"], ["y"], transB=1),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", 1, shape)],
            [helper.make_tensor_value_info("y", 1, [1, 2])],
            [to(weight, "w"), to(head, "h")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / f"{layout}.onnx")
    rng = np.random.default_rng(0)
    for k in range(8):
        name = "blue" if k % 2 else "red"
        picture = rng.integers(0, 99, (20, 24 + k, 3), np.uint8)
        picture[..., 2 if k % 2 else 0] += 120
        for place in (folder / "classes" / {"red": "0red", "blue": "1blue"}[name], folder / "flat"):
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{k}.png")
        for name in "abc":
            (folder / "three" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / "three" / name / f"{k}.png")
    shutil.copytree(folder / "flat", folder / "broken")
    (folder / "broken" / "8.png").write_text("no picture")
    return folder


NORMAL = ("--mean", "0.5", "--std", "0.25")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_folders_of_pictures(coloured, layout, tmp_path):
    given = [coloured / f"{layout}.onnx", coloured / "classes", "-o", tmp_path, *NORMAL, "--size", "18", "--crop", "16"]
    assert hqp_int8(*given) == 0
    report = read_json(tmp_path / "report.json")
    assert (report.baseline.accuracy, report.int8.accuracy, report.samples) == (1.0, 1.0, 8)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["classes"] == ["0red", "1blue"]
    assert manifest["model"]["inputs"][0]["layout"] == layout
    assert manifest["preprocessing"] == {"resize": 18, "center_crop": 16, "mean": [0.5] * 3, "std": [0.25] * 3}
    page = (tmp_path / "report.html").read_text()
    assert "HQP report: quantized under one budget" in page
    assert not any(word in page for word in ("<h2>Trajectory", "<dt>MACs", "<dt>parameters"))
    again = ["-o", tmp_path / "flat", "--manifest", tmp_path / "manifest.json"]
    assert hqp_int8(coloured / f"{layout}.onnx", coloured / "flat", *again) == 0
    assert read_json(tmp_path / "flat" / "report.json").budget.mode == "min"
    pair = (tmp_path / place / "model.int8.onnx" for place in (".", "flat"))
    assert len({p.read_bytes() for p in pair}) == 1


def test_a_manifest_that_does_not_know_how_pictures_are_prepared(run, coloured, tmp_path, capsys):
    given = [coloured / "NCHW.onnx", coloured / "flat", "-o", tmp_path, "--manifest", run / "manifest.json"]
    assert json.loads((run / "manifest.json").read_text())["preprocessing"] is None
    assert hqp_int8(*given) == 1
    assert "or the --manifest of a run that knows" in capsys.readouterr().err
    assert hqp_int8(*given, *NORMAL) == 0


@pytest.mark.parametrize(
    ("images", "options", "expected"),
    [
        ("classes", (), "prepared? Say --mean and --std"),
        ("classes", ("--mean", "0.5"), "belong together"),
        ("classes", ("--mean", "120", "--std", "60"), "scaled to [0, 1]"),
        ("classes", (*NORMAL, "--size", "18"), "see --size and --crop"),
        ("classes", (*NORMAL, "--size", "a"), "--size a: expected pixels"),
        ("classes", (*NORMAL, "--max-drop", "2"), "max_drop=2.0 must lie in (0, 1)"),
        ("classes", (*NORMAL, "--max-noise", "0"), "--max-noise 0.0: expected"),
        ("classes", (*NORMAL, "--limit", "0"), "--limit 0"),
        ("classes", (*NORMAL, "--threads", "0"), "--threads 0: expected at least 1"),
        ("classes", (*NORMAL, "--threads", "-1"), "--threads -1: expected at least 1"),
        ("broken", NORMAL, "8.png"),
        ("flat", (*NORMAL, "--max-drop", "0.1"), "--max-drop needs labels"),
        ("nothing", NORMAL, "no folder and no .npz file at"),
        ("three", NORMAL, "there are 3 folders of pictures, and the network has 2 classes"),
        ("NCHW.onnx", NORMAL, "is no .npz"),
    ],
)
def test_refusals_are_one_line(coloured, images, options, expected, tmp_path, capsys):
    given = [coloured / "NCHW.onnx", coloured / images, "-o", tmp_path / "made" / "deploy"]
    assert main([*map(str, given), "--rtx", "", *options]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("hqp-int8: ")
    assert [line for line in said if not line.startswith("hqp: ")] == said[-1:]  # but for the stages that it reached
    assert expected in said[-1]
    assert list(tmp_path.iterdir()) == []  # nothing is left of what is refused


@pytest.mark.parametrize("name", ["there", "model.int8.onnx"])
def test_a_file_to_write_is_told_to_be_a_folder(coloured, name, tmp_path, capsys):
    (tmp_path / "there").write_text("somebody's")
    assert hqp_int8(coloured / "NCHW.onnx", coloured / "classes", "-o", tmp_path / name, *NORMAL) == 1
    assert "a folder is wanted" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_what_is_refused_leaves_an_earlier_run_as_it_was(coloured, tmp_path, monkeypatch):
    monkeypatch.setattr("hqp_lightning.standalone.pictures._BATCH", 4)  # the broken one is met while scoring
    (tmp_path / "engines").mkdir()
    earlier = {tmp_path / name: name.encode() for name in ("model.onnx", "report.json", "engines/somebody's")}
    for path, content in earlier.items():
        path.write_bytes(content)
    assert hqp_int8(coloured / "NCHW.onnx", coloured / "broken", "-o", tmp_path, *NORMAL) == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == earlier


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty (0 bytes)"), (b"\x08\x07", "is no ONNX model: 2 bytes")])
def test_an_empty_file_is_no_model(content, said, pictures, tmp_path, capsys):
    (tmp_path / "given.onnx").write_bytes(content)
    assert hqp_int8(tmp_path / "given.onnx", pictures, "-o", tmp_path / "deploy") == 1
    assert said in capsys.readouterr().err


def test_a_model_is_never_written_over(dynamo_file, pictures, tmp_path, capsys):
    own = shutil.copy(dynamo_file, tmp_path / "model.onnx")
    assert hqp_int8(own, pictures, "-o", tmp_path) == 1
    assert own.read_bytes() == dynamo_file.read_bytes()
    assert "name another folder" in capsys.readouterr().err


def test_the_runs_int8_file_is_no_float_one(run, pictures, tmp_path, capsys):
    assert hqp_int8(run / "model.int8.onnx", pictures, "-o", tmp_path) == 1
    assert "is quantized already" in capsys.readouterr().err


def test_a_batch_that_is_held_elsewhere_is_refused(tmp_path, pictures, capsys):
    helper, to = onnx.helper, onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Add", ["m", "each"], ["y"]),  # a constant of the batch's size
    ]
    stored = [to(np.array([2, 64]), "shape"), to(np.eye(64, 10, dtype=np.float32), "w")]
    stored.append(to(np.arange(20, dtype=np.float32).reshape(2, 10), "each"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", 1, [2, 1, 8, 8])], [value("y", 1, [2, 10])], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    assert hqp_int8(tmp_path / "model.onnx", pictures, "-o", tmp_path / "deploy") == 1
    assert "takes batches of 2 alone" in capsys.readouterr().err
