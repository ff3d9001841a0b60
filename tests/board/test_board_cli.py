"""``hqp-engine`` end to end on doubles: what it prints, what it writes, and what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tensorrt_doubles import RELEASES, Driver, named

import hqp_lightning
from hqp_lightning.board.cli import main
from hqp_lightning.export.board_files import write_program

ROOT = Path(hqp_lightning.__file__).parents[1]


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the export folder, as on the board."""
    return Path(shutil.copytree(exported, tmp_path / "deploy"))


def _reference(path, images):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


@pytest.mark.parametrize("release", RELEASES)
def test_build_bench_inspect_check(release, board, folder, capsys):
    here = board(release)
    engine = folder / "model.engine"
    assert main(["build", str(folder / "model.int8.onnx"), "-o", str(engine), "--batch-size", "4"]) == 0
    said = capsys.readouterr().out
    assert "model.int8.onnx: SHA-256 as in manifest.json" in said
    assert "3 convolutions and matrix products asked for INT8, 0 layers fell back" in said
    note = json.loads((folder / "model.engine.json").read_text())
    assert note["gpu"] == {"name": "Orin", "compute_capability": "8.7", "multiprocessors": 8}
    assert (note["tensorrt"], note["precision"], note["batch_size"], note["max_batch"]) == (release, "int8", 4, 32)
    form = {"8": ".trt8", "1": ""}[release[0]] if not release.startswith("11") else ".fp16"
    assert note["source"]["path"] == f"model.int8{form}.onnx"

    assert main(["bench", str(engine), "--runs", "10", "--warmup", "3"]) == 0
    said = capsys.readouterr().out
    # A span of the driver's clock is 0.5 ms, whatever lies inside: 10 calls of 4 images in 0.5 ms.
    assert "latency 0.500 ms median, 0.500 ms p95 of 10 calls after 3" in said
    assert "throughput 80000 images/s" in said
    assert len(named(here.trt, "IExecutionContext.execute_async_v3")) == 3 + 10 + 10

    assert main(["inspect", str(engine)]) == 0
    assert "3 layers: 3 INT8" in capsys.readouterr().out
    assert main(["inspect", str(engine), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["Layers"]) == 3

    images = np.random.default_rng(1).normal(size=(70, 3, 8, 8)).astype(np.float32)  # more than the profile takes
    labels = _reference(folder / "model.int8.onnx", images).argmax(1)
    labels[:7] = (labels[:7] + 1) % 10
    np.savez(folder / "data.npz", images=images, labels=labels)
    assert main(["check", str(engine), str(folder / "data.npz")]) == 0
    said = capsys.readouterr().out
    expected = (
        (_reference(folder / "tensorrt" / f"model.int8{form}.onnx", images).argmax(1) == labels).sum() if form else 63
    )
    assert f"top-1 {expected / 70:.4f} ({expected} of 70 images" in said
    assert "the manifest says 0.7500 for val_acc" in said
    assert not here.driver.buffers  # all memory was given back
    assert not here.driver.streams
    assert not here.driver.events


def test_what_fell_back_is_said(board, folder, capsys):
    here = board()
    here.trt.float_layers.add("/2/Conv")
    engine = folder / "model.engine"
    for command in (["build", str(folder / "model.int8.onnx"), "-o", str(engine)], ["inspect", str(engine)]):
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "warning: /2/Conv + Relu should be INT8 and runs in FP16" in said
        assert "3 convolutions and matrix products asked for INT8, 1 layers fell back" in said
    assert main(["build", str(folder / "model.onnx"), "-o", str(engine)]) == 0  # fp16: nothing was asked for
    assert "fell back" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"driver": Driver(name=b"NVIDIA A100", capability=(8, 0))},
            r"for the GPU Orin \(compute capability 8.7\), here is NVIDIA A100 \(8.0\)",
        ),
        ({"release": "8.6.0"}, "is for TensorRT 10.3.0, here is 8.6.0: build it here: hqp-engine build"),
        ({"driver": Driver(init=100)}, r"cuInit returned 100\): no GPU is visible"),
        ({"driver": Driver(init=803)}, "reboot, or install the driver again"),
        ({"driver": Driver(memory=100)}, "GPU out of memory: 0 MB asked for"),
    ],
)
def test_an_engine_of_elsewhere_is_refused_before_tensorrt_sees_it(change, said, board, folder, capsys):
    board()
    engine = folder / "model.engine"
    assert main(["build", str(folder / "model.int8.onnx"), "-o", str(engine)]) == 0
    elsewhere = board(**change)
    assert main(["bench", str(engine)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hqp-engine: ")
    assert error.count("\n") == 1
    assert re.search(said, error)
    if "memory" not in said:
        assert not named(elsewhere.trt, "Runtime.__init__")


def test_another_power_mode_is_only_a_warning(board, folder, capsys):
    board()
    engine = folder / "model.engine"
    main(["build", str(folder / "model.int8.onnx"), "-o", str(engine)])
    board(driver=Driver(multiprocessors=4))
    assert main(["inspect", str(engine)]) == 0
    assert "warning" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "missing.onnx", "-o", "e"], "no ONNX file at"),
        (["build", "model.onnx", "-o", "e", "--precision", "int8"], "int8 takes a model with Q/DQ nodes"),
        (["build", "model.int8.onnx", "-o", "e", "--precision", "fp16"], "fp16 takes the float model.onnx"),
        (["build", "model.onnx", "-o", "e", "--batch-size", "8", "--max-batch", "4"], "batch size 8, largest 4"),
        (["build", "model.onnx", "-o", "model.onnx"], "the engine would overwrite the model model.onnx"),
        (["bench", "missing.engine"], "no engine at missing.engine: build it here"),
        (["bench", "bare.engine"], "no readable note bare.engine.json"),
        (["bench", "model.engine", "--runs", "0"], "runs=0"),
        (["bench", "model.engine", "--batch-size", "33"], "expected"),
        (["bench", "model.engine", "--batch-size", "0"], "batch size 0: expected at least 1"),
        (["bench", "model.engine", "--batch-size", "-1"], "batch size -1: expected at least 1"),
        (["check", "model.engine", "shifted.npz"], "labels from 1 to 10, the model 10 classes, numbered from 0"),
        (["check", "model.engine", "shifted.npz", "--limit", "0"], "expected at least 1 image"),
        (["check", "model.engine", "shifted.npz", "--manifest", "lost.json"], "could not read the manifest lost.json"),
        (["check", "model.engine", "missing"], "no folder and no .npz"),
    ],
)
def test_bad_input_gets_one_line(arguments, said, board, folder, capsys, monkeypatch):
    board()
    monkeypatch.chdir(folder)
    main(["build", "model.int8.onnx", "-o", "model.engine"])
    Path("bare.engine").write_bytes(b"PLAN")
    np.savez("shifted.npz", images=np.zeros((10, 3, 8, 8), np.float32), labels=np.arange(1, 11))
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("e").exists()


def test_check_says_what_to_doubt(board, folder, capsys):
    board()
    engine = folder / "model.engine"
    main(["build", str(folder / "model.int8.onnx"), "-o", str(engine)])
    for name in "jihgfedcba":
        (folder / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "pictures" / name / "1.png")
    capsys.readouterr()
    assert main(["check", str(engine), str(folder / "pictures")]) == 0
    said = capsys.readouterr().out
    assert "warning: folders were matched with the classes in alphabetical order: a = 0, b = 1, c = 2 ..." in said
    assert "another model" not in said
    assert "the manifest says 0.7500 for val_acc of model.int8.onnx" in said
    content = json.loads((folder / "manifest.json").read_text())
    content["classes"] = list("abcdefghij")
    content["model"]["sha256"] = content["files"]["model.int8.onnx"] = "of a later export"
    (folder / "manifest.json").write_text(json.dumps(content))
    assert main(["check", str(engine), str(folder / "pictures")]) == 0
    said = capsys.readouterr().out
    assert "warning: the engine was built from another model than the manifest describes" in said
    assert "alphabetical" not in said


def test_an_engine_of_the_export_finds_the_manifest_that_was_written_after_it(board, folder, capsys):
    board()
    (folder / "manifest.json").rename(folder / "later")
    engine = folder / "engines" / "model.int8.int8.engine"
    assert main(["build", str(folder / "model.int8.onnx"), "-o", str(engine)]) == 0
    (folder / "later").rename(folder / "manifest.json")
    (folder / "pictures" / "3").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "pictures" / "3" / "1.png")
    capsys.readouterr()
    assert main(["check", str(engine), str(folder / "pictures")]) == 0
    said = capsys.readouterr().out
    assert "the manifest says 0.7500" in said
    assert "warning" not in said


def test_a_folder_of_links_is_verified(board, folder, capsys, monkeypatch):
    """As volumes are mounted in containers, or the large files alone; and from inside of tensorrt/."""
    board()
    links = folder.parent / "links"
    (links / "tensorrt").mkdir(parents=True)
    for path in folder.rglob("*"):
        if path.is_file():
            (links / path.relative_to(folder)).symlink_to(path)
    monkeypatch.chdir(links)
    for _ in range(2):
        assert main(["build", "model.int8.onnx", "-o", "model.engine"]) == 0
        assert "model.int8.onnx: SHA-256 as in manifest.json" in capsys.readouterr().out
        (links / "manifest.json").unlink()
        shutil.copy(folder / "manifest.json", links)
    monkeypatch.chdir(links / "tensorrt")
    board("8.6.0")
    assert main(["build", "model.int8.trt8.onnx", "-o", "model.engine"]) == 0
    assert "model.int8.trt8.onnx: SHA-256 as in manifest.json" in capsys.readouterr().out
    (links / "manifest.json").unlink()
    (links / "manifest.json").write_text('{"schema_version": 1}')
    assert main(["build", "model.int8.trt8.onnx", "-o", "model.engine"]) == 1
    assert "is no manifest of schema version 1" in capsys.readouterr().err


def test_other_bytes_are_refused(board, folder, capsys):
    board()
    engine = folder / "model.engine"
    main(["build", str(folder / "model.int8.onnx"), "-o", str(engine)])
    for path, command in (
        (engine, ["bench", str(engine)]),
        (folder / "model.int8.onnx", ["build", str(folder / "model.int8.onnx"), "-o", str(engine)]),
    ):
        content = path.read_bytes()
        path.write_bytes(content + b"\0")
        assert main(command) == 1
        assert "SHA-256 differs" in capsys.readouterr().err
        path.write_bytes(content)
    board("8.6.0")
    form = folder / "tensorrt" / "model.int8.trt8.onnx"
    form.write_bytes(form.read_bytes() + b"\0")
    assert main(["build", str(folder / "model.int8.onnx"), "-o", str(engine)]) == 1
    assert "trt8.onnx is not the file" in capsys.readouterr().err


def test_a_failed_build_leaves_the_old_engine(board, folder, capsys):
    board()
    engine = folder / "model.engine"
    main(["build", str(folder / "model.int8.onnx"), "-o", str(engine)])
    before = engine.read_bytes(), (folder / "model.engine.json").read_bytes()
    failing = board(Runtime__deserialize_cuda_engine=lambda self, plan: None)
    assert main(["build", str(folder / "model.int8.onnx"), "-o", str(engine)]) == 1
    assert "cannot load" in capsys.readouterr().err
    assert (engine.read_bytes(), (folder / "model.engine.json").read_bytes()) == before
    assert not failing.driver.buffers


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "."], "cannot write .: . is a folder"),
        (["-o", "manifest.json/e"], "cannot write manifest.json/e: "),
        (["-o", "e", "--timing-cache", "tensorrt"], "cannot write tensorrt: tensorrt is a folder"),
        (["-o", "e", "--timing-cache", "model.onnx/cache"], "cannot write model.onnx/cache: "),
    ],
)
def test_an_unwritable_place_is_refused_before_the_build(options, said, board, folder, capsys, monkeypatch):
    here = board()
    monkeypatch.chdir(folder)
    assert main(["build", "model.int8.onnx", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"hqp-engine: {said}")
    assert error.count("\n") == 1
    assert not named(here.trt, "Builder.__init__")
    assert not Path("e").exists()


def test_an_unreadable_report_does_not_cost_the_engine(board, folder, capsys):
    board(EngineInspector__get_engine_information=lambda self, form: '{"Layers": [}')
    engine = folder / "model.engine"
    assert main(["build", str(folder / "model.int8.onnx"), "-o", str(engine)]) == 0
    said = capsys.readouterr().out
    assert "warning: the precision of the layers is not known: TensorRT's report of the layers cannot be read" in said
    assert main(["bench", str(engine), "--runs", "2"]) == 0
    assert main(["inspect", str(engine)]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_ctrl_c_is_one_line(board, folder, capsys):
    def press(self, network, config):
        raise KeyboardInterrupt

    board(Builder__build_serialized_network=press)
    assert main(["build", str(folder / "model.int8.onnx"), "-o", str(folder / "model.engine")]) == 130
    assert capsys.readouterr().err == "hqp-engine: interrupted\n"
    assert not (folder / "model.engine").exists()


def test_a_full_disk_leaves_the_old_engine(board, folder, capsys, monkeypatch):
    here = board()
    command = ["build", str(folder / "model.int8.onnx"), "-o", str(folder / "model.engine")]
    main([*command, "--timing-cache", str(folder / "timing.cache")])
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    write = Path.write_bytes

    def fill(self, content):
        write(self, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    capsys.readouterr()
    for options in ([], ["--timing-cache", str(folder / "timing.cache")]):
        assert main([*command, *options, "--batch-size", "2"]) == 1
        assert re.fullmatch(r"hqp-engine: cannot write .* MB\): .*No space left on device\n", capsys.readouterr().err)
        assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    assert not here.driver.streams


def test_without_tensorrt_it_says_where_to_get_it(board, folder, capsys, monkeypatch):
    board()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["build", str(folder / "model.int8.onnx"), "-o", "e"]) == 1
    assert "sudo apt install python3-libnvinfer" in capsys.readouterr().err


HEAVY = "torch", "lightning", "onnx", "onnxruntime", "torchvision", "matplotlib"


@pytest.mark.parametrize("packed", [False, True])
def test_it_runs_without_torch(packed, folder, tmp_path):
    """In a process where importing torch, lightning or onnx fails, from the package and from the one file."""
    program = write_program(tmp_path / "hqp-engine.pyz") if packed else ROOT
    code = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({HEAVY!r})); sys.path.insert(0, {str(program)!r})\n"
        f"sys.argv = ['hqp-engine', 'build', {str(folder / 'model.int8.onnx')!r}, '-o', 'e']\n"
        "runpy.run_module('hqp_lightning.board', run_name='__main__')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert "Traceback" not in done.stderr
    if done.returncode:  # no GPU here, or no TensorRT
        assert done.stderr.startswith("hqp-engine: no ")
    if packed:
        names = zipfile.ZipFile(program).namelist()
        assert {n.split("/")[0] for n in names} == {"hqp_lightning", "__main__.py"}
        assert {n.split("/")[1] for n in names if "/" in n} == {"__init__.py", "errors.py", "board"}
        direct = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, check=True)
        assert "bench" in direct.stdout


def test_the_program_is_reproducible(tmp_path):
    first = write_program(tmp_path / "a.pyz").read_bytes()
    assert write_program(tmp_path / "b.pyz").read_bytes() == first
    assert first.startswith(b"#!/usr/bin/env python3\n")


def test_a_model_for_cpus_is_refused(exported, board, tmp_path, capsys):
    board()
    shutil.copytree(exported, tmp_path / "deploy")
    path = tmp_path / "deploy" / "manifest.json"
    content = json.loads(path.read_text())
    content["calibration"] = {"method": "mse", "activation_type": "uint8"}
    path.write_text(json.dumps(content))
    assert main(["build", str(path.with_name("model.int8.onnx")), "-o", str(tmp_path / "m.engine")]) == 1
    assert "model.int8.onnx has uint8 activations, for CPUs" in capsys.readouterr().err
    assert main(["build", str(path.with_name("model.onnx")), "-o", str(tmp_path / "m.engine")]) == 0


@pytest.mark.parametrize("release", RELEASES)
def test_check_against_the_logits_of_the_export(release, board, folder, capsys):
    board(release)
    engine = folder / "model.engine"
    main(["build", str(folder / "model.int8.onnx"), "-o", str(engine), "--max-batch", "5"])
    capsys.readouterr()
    assert main(["check", str(engine)]) == 0  # no pictures are needed
    said = capsys.readouterr().out
    images = np.load(folder / "references.npz")["images"].astype(np.float32)
    source = json.loads((folder / "model.engine.json").read_text())["source"]["path"]
    path = next(p for p in folder.rglob("*.onnx") if p.name == source)
    found, float_ = _reference(path, images), _reference(folder / "model.onnx", images)
    found, float_ = (x.astype(np.float64) - x.mean(1, keepdims=True) for x in (found, float_))
    sqnr = 10 * np.log10((float_**2).sum() / ((found - float_) ** 2).sum())
    agree = (found.argmax(1) == float_.argmax(1)).mean()
    assert f"8 reference images: {agree:.1%} of the classes as float on the training machine, {sqnr:.1f} dB" in said
    int8 = np.load(folder / "references.npz")["int8"]
    alike = (found.argmax(1) == int8.argmax(1)).mean()  # those of float16 may decide a tie otherwise
    assert alike >= 7 / 8
    assert f"8 reference images: {alike:.1%} of the classes as int8 on the training machine" in said
    assert re.search(r"one image repeated 5 times: rows differ by \d", said)


def test_an_engine_whose_rows_differ_is_refused(board, folder, capsys):
    def execute(self, stream):
        from tensorrt_doubles import _execute, _view

        done = _execute(self, stream)
        out = self.engine_double.session.get_outputs()[0].name
        batch = next(iter(self.shapes.values()))[0]
        rows = _view(self.addresses[out], (batch, 10))
        if batch == 32:
            rows[7] += 100
        return done

    board(IExecutionContext__execute_async_v3=execute)
    engine = folder / "model.engine"
    main(["build", str(folder / "model.int8.onnx"), "-o", str(engine)])
    capsys.readouterr()
    assert main(["check", str(engine)]) == 1
    assert "one image repeated 32 times gives logits that differ by 100: the engine is wrong" in capsys.readouterr().err


def test_check_needs_something_to_compare_with(board, folder, capsys):
    board()
    engine = folder / "model.engine"
    main(["build", str(folder / "model.int8.onnx"), "-o", str(engine)])
    (folder / "references.npz").unlink()
    capsys.readouterr()
    assert main(["check", str(engine)]) == 1
    assert "could not read the reference logits" in capsys.readouterr().err
    (folder / "manifest.json").unlink()
    assert main(["check", str(engine)]) == 1
    assert "no references in the manifest, and no DATA given" in capsys.readouterr().err


@pytest.mark.parametrize("release", RELEASES)
def test_workspace_and_level_reach_the_builder(release, board, folder, capsys):
    here = board(release)
    command = ["build", str(folder / "model.int8.onnx"), "-o", str(folder / "m.engine"), "--workspace", "64"]
    assert main(command) == 0
    ((pool, size),) = named(here.trt, "IBuilderConfig.set_memory_pool_limit")
    assert (pool, size) == (here.trt.MemoryPoolType.WORKSPACE, 64_000_000)
    capsys.readouterr()
    if release.startswith("8.5"):
        assert main([*command, "--optimization-level", "5"]) == 1
        assert "has no optimization levels" in capsys.readouterr().err
    else:
        assert main([*command, "--optimization-level", "5"]) == 0
        assert named(here.trt, "IBuilderConfig.builder_optimization_level") == [[5]]
