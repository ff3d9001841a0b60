"""Pruning by magnitude, and the comparison of methods that a run of it ends with."""

import math

import pytest
import torch
from classifier import Classifier, Scripted, accuracy_by_hand, macs_of

from hqp_lightning import HQPPruning, hqp_callbacks
from hqp_lightning.callbacks.comparing import CompareMethods, lift_budget_


def test_magnitude_removes_the_channels_of_the_smallest_weights(small_loaders, make_trainer):
    model = Scripted([0.9, 0.89], lr=1e-9)
    faint = [1, 4, 9, 16, 25, 27, 30, 31]
    with torch.no_grad():
        for weight, dim in ((model.net[0].weight, 0), (model.net[1].weight, 0), (model.net[3].weight, 1)):
            weight.index_fill_(dim, torch.tensor(faint), 1e-3)
    kept = [c for c in range(32) if c not in faint]
    before = model.net[0].weight.detach()[kept].clone()
    pruning = HQPPruning("val_acc", 0.02, step=0.02, estimator="magnitude", cost="none", recalibrate_batches=0)
    make_trainer(1, [pruning]).fit(model, *small_loaders)
    assert [(r.outcome, r.channels_removed) for r in pruning.records] == [("kept", 8)]
    assert torch.allclose(model.net[0].weight, before, atol=1e-6)
    assert not pruning.own_fisher.state.samples  # no backward pass was made for it


def test_without_a_budget_every_score_is_kept(small_loaders, make_trainer, capsys):
    pruning = HQPPruning("val_acc", 0.02, step=0.2, estimator="magnitude")
    lift_budget_(pruning)
    assert pruning.budget.max_drop == math.inf
    make_trainer(2, [pruning]).fit(Scripted([0.9, 0.2, 0.1]), *small_loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "kept"]
    assert "(drop 0.7000)" in capsys.readouterr().out  # of nothing


EXPORT = {"engines": ["onnxruntime"], "latency_runs": 3, "threads": 1, "calibration_batches": 2}


@pytest.mark.parametrize("prunes", [True, False])
def test_methods_are_compared_on_one_dense_model(loaders, make_trainer, digits, tmp_path, prunes):
    pruning, export = hqp_callbacks(
        0.9, "val_acc", tmp_path / "deploy", step=0.3, export={**EXPORT, "holdout": loaders[1]}
    )
    torch.manual_seed(0)
    make_trainer(2, [pruning, export]).fit(Classifier(), *loaders)
    report = export.report

    ending = CompareMethods(report, export, tmp_path / "others")
    callbacks = [ending]
    if prunes:
        left = report.int8.macs / report.baseline.macs
        other = HQPPruning("val_acc", 0.9, step=0.4, estimator="magnitude", cost="none", target_macs=left)
        lift_budget_(other)
        callbacks = [other, ending]
    torch.manual_seed(0)
    # Without epochs, as where there is nothing to prune, Lightning calls no hook of training.
    make_trainer(2 if prunes else 0, callbacks).fit(Classifier(), *loaders)
    found = {m.method: m for m in ending.comparison.methods}
    assert list(found) == ["dense", "INT8 only", *(["pruned by magnitude"] if prunes else []), "HQP"]
    assert found["dense"].figures == report.baseline
    assert found["HQP"].figures == report.int8
    assert found["HQP"].size_reduction == pytest.approx(report.size_reduction)
    assert any("no such row" in note for note in ending.comparison.notes) == (not prunes)

    x, y = digits[0][1200:1400], digits[1][1200:1400]
    files = {"INT8 only": "int8_only.onnx", "pruned by magnitude": "magnitude.onnx"}
    for method, file in {m: f for m, f in files.items() if m in found}.items():
        path, row = tmp_path / "others" / file, found[method]
        accuracy = accuracy_by_hand(path, x, y)
        assert row.figures.accuracy == pytest.approx(accuracy, abs=1e-6)
        assert row.figures.holdout_accuracy == pytest.approx(accuracy, abs=1e-6)
        assert row.accuracy_drop == pytest.approx(report.held_to - accuracy, abs=1e-6)
        assert row.figures.macs == pytest.approx(macs_of(path))
        assert row.figures.file_bytes == path.stat().st_size
    if prunes:
        assert found["pruned by magnitude"].figures.macs == pytest.approx(report.int8.macs, rel=0.15)
        assert other.state.records[0].outcome == "kept"

    engines = {(e.model, e.precision): e.latency_ms for e in ending.comparison.engines}
    timed = {("dense", "fp32"), ("dense", "int8"), ("hqp", "int8")}
    assert set(engines) == timed | ({("magnitude", "fp32")} if prunes else set())
    assert found["HQP"].speedup == engines["dense", "fp32"].median / engines["hqp", "int8"].median
