"""A search that a latency table prices: from a file by hand, and from one that this machine's engine makes."""

import zipfile
from dataclasses import replace

import pytest
import torch
from classifier import Scripted, small_net

from hqp_lightning import HQPPruning, Int8Export
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.export import counters, latency
from hqp_lightning.loop import pricing
from hqp_lightning.records import LatencyTable, NetworkTime, Part
from hqp_lightning.report.latency_table import read_table, write_table
from hqp_lightning.surgery import layer_widths

DENSE = layer_widths(small_net(), ("0", "3", "7", "11"))


def table(dear="7"):
    """One layer takes a millisecond for each output, the others one in all."""
    networks = [NetworkTime("dense", "fp32", DENSE, 201.0, {})]
    for width in (64, 48, 32, 16, 8):
        widths = {**DENSE, dear: (DENSE[dear][0], width)}
        parts = {n: float(o) if n == dear else 1.0 for n, (_, o) in widths.items()}
        networks.append(NetworkTime(f"{width}", "int8", widths, sum(parts.values()), parts))
    parts = {n: Part(n, (n,)) for n in DENSE}
    return LatencyTable("tensorrt", "10.3", "Orin", 0, "gpu", 1, ((1, 8, 8),), parts, tuple(networks))


@pytest.mark.parametrize(
    ("target", "left", "reason"),
    [
        ({"target_latency_ms": 50.0}, 40, "target_latency_ms=50 reached: 43 ms predicted"),  # 40 + 3: two steps of 16
        ({"target_speedup": 4.0}, 40, "target_speedup=4 reached: 43 ms predicted"),  # 201 / 4
    ],
)
def test_the_layer_that_the_table_calls_dear_is_the_one_that_is_pruned(
    small_loaders, make_trainer, tmp_path, target, left, reason
):
    path = write_table(table(), tmp_path / "orin.json")
    pruning = HQPPruning("val_acc", 0.5, step=0.2, min_step=0.05, cost=str(path), **target)
    model = Scripted([0.9])
    make_trainer(4, [pruning]).fit(model, *small_loaders)
    assert [m.out_channels for m in model.net if isinstance(m, torch.nn.Conv2d)] == [32, 64, left]
    assert [r.predicted_ms for r in pruning.records] == pytest.approx([67.0 - 16, 43.0])
    assert pruning.state.search.ended == reason


def test_a_table_made_here_prices_the_run_goes_into_checkpoints_and_lies_beside_the_report(
    small_loaders, make_trainer, tmp_path, monkeypatch
):
    for module, name, value in ((latency, "_TURNS", 1), (counters, "_TURNS", 1), (pricing, "NETWORKS", 3)):
        monkeypatch.setattr(module, name, value)
    pruning = HQPPruning("val_acc", 0.5, step=0.3, min_step=0.1, cost="latency", recalibrate_batches=1)
    export = Int8Export(tmp_path / "deploy", latency_runs=2, calibration_batches=1, rtx=())
    make_trainer(1, [pruning, export]).fit(Scripted([0.9], int8=[0.9]), *small_loaders)
    made = read_table(tmp_path / "deploy" / "latency_table.json")
    assert made == pruning.state.price.table
    assert {p for p in made.parts if not p.startswith("/")} == {"0", "3", "7", "11"}
    assert [(n.name, n.precision) for n in made.networks[:2]] == [("dense", "fp32"), ("dense", "int8")]
    assert len(made.networks) == 4
    assert all(n.ms > 0 for n in made.networks)
    assert made.networks[1].widths == DENSE != made.networks[2].widths
    with zipfile.ZipFile(tmp_path / "deploy" / "latency_networks.zip") as archive:
        assert {"table.json", "0.onnx", "3.onnx", "tensorrt/1.trt8.onnx", "tensorrt/3.fp16.onnx"} <= {
            *archive.namelist()
        }
    figures = export.report.latency
    assert figures.predicted_ms == pytest.approx(pruning.state.predicted_ms)
    assert figures.measured_ms > 0
    assert type(pruning.state).from_plain(pruning.state_dict()).price.table == made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_speedup": 2.0}, "target_speedup=2.0 needs cost='latency' or a table"),
        ({"target_latency_ms": 0.0, "cost": "latency"}, "target_latency_ms=0.0 must be a number above 0"),
        ({"target_speedup": 1, "cost": "latency"}, "must be a number above 1"),
        ({"cost": "orin.jsn"}, "cost='orin.jsn' is not known"),
    ],
)
def test_refused_at_the_door(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        HQPPruning("val_acc", 0.1, **arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": ((1, 16, 16),)}, "orin.json is of inputs of 1×16×16; the file takes 1×8×8"),
        ({"inputs": ((1, 8, 8), (3,))}, "of inputs of 1×8×8, 3; the file takes 1×8×8"),
        ({"batch_size": 8}, "of calls of 8 samples, and Int8Export has batch_size=1"),
    ],
)
def test_a_table_of_other_calls_is_refused_before_training(small_loaders, make_trainer, tmp_path, changed, message):
    path = write_table(replace(table(), **changed), tmp_path / "orin.json")
    pruning, export = HQPPruning("val_acc", 0.1, cost=str(path)), Int8Export(tmp_path / "deploy", rtx=())
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(1, [pruning, export]).fit(Scripted([0.9]), *small_loaders)


def test_a_target_that_is_met_already_is_told(small_loaders, make_trainer, tmp_path):
    path = write_table(table(), tmp_path / "orin.json")
    pruning = HQPPruning("val_acc", 0.5, cost=str(path), target_latency_ms=100.0)
    export = Int8Export(tmp_path / "deploy", latency_runs=2, calibration_batches=1, rtx=())
    make_trainer(1, [pruning, export]).fit(Scripted([0.9], int8=[0.9]), *small_loaders)
    assert "No pruning step was made: target_latency_ms=100 reached: 67 ms predicted." in export.report.notes


def test_a_table_of_another_network_is_refused_before_training(small_loaders, make_trainer, tmp_path):
    wrong = replace(table(), networks=(NetworkTime("dense", "int8", {"0": DENSE["0"]}, 1.0, {}),))
    path = write_table(wrong, tmp_path / "orin.json")
    with pytest.raises(ConfigurationError, match="orin.json is of another network"):
        make_trainer(1, [HQPPruning("val_acc", 0.1, cost=str(path))]).fit(Scripted([0.9]), *small_loaders)
