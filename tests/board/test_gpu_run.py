"""The benchmark for a machine with a GPU, on doubles: from the pieces to the table; and without a GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "gpu"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import measure
    import prepare

    return measure, prepare


@pytest.fixture
def pieces(gpu, exported, tmp_path):
    """What `prepare.py` makes of an export folder, twice: as a dense and as a pruned model."""
    (tmp_path / "out").mkdir()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3, 8, 8)).astype(np.float32), np.arange(20) % 10
    x = gpu[1].write_photographs(tmp_path / "photographs.npz", x, y)
    for kind in ("dense", "pruned"):
        gpu[1].write_model(exported, tmp_path / "models" / f"net.{kind}", x, y)
    return tmp_path


def test_photographs_come_back_as_they_were_scored(gpu, pieces):
    x, y = gpu[0].photographs(pieces)
    assert (x.shape, x.dtype, y.shape) == ((20, 3, 8, 8), np.float32, (20,))
    expected = json.loads((pieces / "models" / "net.dense" / "expected.json").read_text())
    assert expected.keys() == {"float", "int8"}


def test_from_the_pieces_to_the_table(gpu, pieces, board, capsys):
    put, out = board("8.5.3.1"), pieces / "out"
    for model in ("net.dense", "net.pruned"):
        gpu[0].main(["build", str(pieces), str(out), model])
    gpu[0].main(["time", str(pieces), str(out)])
    gpu[0].main(["table", str(out)])
    sources = [args[0] for name, args in put.trt.calls if name == "IBuilderConfig.set_tactic_sources"]
    wanted = put.trt.TacticSource
    assert set(sources) == {1 << wanted.EDGE_MASK_CONVOLUTIONS | 1 << wanted.JIT_CONVOLUTIONS}
    lines = (out / "table.md").read_text().splitlines()
    assert lines[0] == "Orin, tensorrt 8.5.3.1"
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines[4:]]
    assert [c[:4] for c in cells[:4]] == [
        ["net.dense", "TensorRT", p, b] for p, b in (("fp32", "1"), ("fp16", "1"), ("int8", "1"), ("fp32", "8"))
    ]
    assert len(cells) == 12
    for row in cells:
        assert float(row[4].split()[0]) > 0
        assert float(row[6].rstrip("x")) > 0
        assert row[7] == row[8]  # onnxruntime is behind the doubles
        assert row[9] == ("3 of 3" if row[2] == "int8" else "")


def test_a_build_that_fails_is_a_row_and_the_others_go_on(gpu, pieces, board):
    board("8.5.3.1", Builder__build_serialized_network=lambda self, network, config: None)
    out = pieces / "out"
    gpu[0].main(["build", str(pieces), str(out), "net.dense"])
    gpu[0].main(["build", str(pieces), str(out), "net.pruned", "--until", "0"])
    gpu[0].main(["time", str(pieces), str(out)])
    gpu[0].main(["table", str(out)])
    text = (out / "table.md").read_text()
    assert text.count("could not build") == 6
    assert text.count("no time left for it") == 6


def test_the_whole_script_without_a_gpu(pieces):
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    shutil.rmtree(pieces / "models" / "net.pruned")
    env = {**os.environ, "TENSORRT_PYTHON": sys.executable, "RTX_PYTHON": "false", "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(ROOT / "benchmarks" / "gpu" / "run.sh"), str(pieces), str(pieces / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1
    assert "no engine was built" in done.stdout
    assert "| net.dense | TensorRT | fp32 | 1 |" in (pieces / "out" / "table.md").read_text()
