"""``hqp-engine profile`` on doubles of five releases: from an archive of networks to a table that a pruning reads."""

from dataclasses import asdict

import pytest
from tensorrt_doubles import RELEASES, named

from hqp_lightning.board.cli import main
from hqp_lightning.core.latency import price_of
from hqp_lightning.export.archive import filled, write_archive
from hqp_lightning.export.latency import How, with_any_ranges
from hqp_lightning.export.parts import naming
from hqp_lightning.records import LatencyTable, NetworkTime, Part
from hqp_lightning.report.latency_table import read_table

WIDTHS = {"0": (3, 8), "2": (8, 8), "4": (128, 10)}


@pytest.fixture(scope="module")
def archive(exported, tmp_path_factory):
    """The dense network, as a run with ``cost="latency"`` leaves it."""
    folder = tmp_path_factory.mktemp("profile")
    dense = filled(exported / "model.onnx", folder / "float.onnx")
    int8 = with_any_ranges(dense, folder / "int8.onnx", How(placement="all"))
    names = naming(exported / "model.onnx", tuple(WIDTHS))
    networks = (NetworkTime("dense", "fp32", WIDTHS, 9.0, {}), NetworkTime("dense", "int8", WIDTHS, 9.0, {"0": 9.0}))
    parts = {n: Part(n, (n,), per_channel=False) for n in WIDTHS} | {"/Gone": Part("", ("0",))}
    table = LatencyTable("openvino", "1", "a CPU", 1, "processor", 1, ((3, 8, 8),), parts, networks)
    return write_archive(folder / "latency_networks.zip", asdict(table), [dense, int8], names.nodes)


@pytest.mark.parametrize("release", RELEASES)
def test_a_table_of_the_gpu_is_one_that_the_pruning_reads(release, board, archive, tmp_path, capsys):
    here, out = board(release), tmp_path / "orin.latency.json"
    assert main(["profile", str(archive), "-o", str(out), "--runs", "5"]) == 0
    assert "give it to the pruning as cost='orin.latency.json'" in capsys.readouterr().out
    table = read_table(out)
    assert (table.engine, table.version, table.device, table.threads, table.clock) == (
        "tensorrt",
        release,
        "Orin",
        0,
        "gpu",
    )
    # A span of the driver's clock is 0.5 ms; the double's profiler says 0.25 ms of every layer.
    assert [(n.precision, n.ms) for n in table.networks] == [("fp32", 0.5), ("int8", 0.5)]
    assert {n: table.networks[1].parts[n] for n in WIDTHS} == dict.fromkeys(WIDTHS, 0.25)
    assert set(table.parts) == set(table.networks[1].parts) == set(WIDTHS)
    assert price_of(table, WIDTHS).dense_ms == pytest.approx(0.5)
    assert len(named(here.trt, "IExecutionContext.profiler")) == 1  # the float network as a whole is enough


def test_what_is_no_archive_is_refused(board, tmp_path, capsys):
    board("10.3.0")
    (tmp_path / "networks.zip").write_bytes(b"PK")
    for name in ("networks.zip", "nothing.zip"):
        assert main(["profile", str(tmp_path / name), "-o", str(tmp_path / "t.json")]) == 1
        assert "a run with cost='latency' writes latency_networks.zip" in capsys.readouterr().err
    assert main(["profile", str(tmp_path / "networks.zip"), "-o", str(tmp_path / "t.json"), "--runs", "0"]) == 1
    assert "runs=0: expected at least 1" in capsys.readouterr().err
