from dataclasses import replace
from importlib import metadata

import pytest
from report_samples import BASELINE, BUDGET, ENGINES, INT8, PRUNED, engine

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import Budget, ModelFigures
from hqp_lightning.report import assemble, versions
from hqp_lightning.report.assemble import fastest_within, speed_pair


def test_derived_figures_are_those_worked_out_by_hand(report):
    assert report.accuracy_drop == pytest.approx(0.01)
    assert report.holdout_accuracy_drop == pytest.approx(0.02)
    assert report.control_accuracy_drop == pytest.approx(0.02)
    assert report.control_holdout_accuracy_drop == pytest.approx(0.025)
    assert report.size_reduction == pytest.approx(0.9)  # 4 MB of 40
    assert report.macs_reduction == pytest.approx(0.75)  # 0.5 G of 2
    assert report.speedup == pytest.approx(4.0)  # 12 ms over 3
    assert report.within_budget


@pytest.mark.parametrize(
    ("dense", "int8", "within"), [(0.925, 0.910, True), (0.925, 0.9099, False), (0.925, 0.93, True)]
)
def test_a_drop_of_exactly_the_budget_is_within_it(sample, dense, int8, within):
    # 0.925 - 0.910 > 0.015 in binary floating point
    report = sample(baseline=replace(BASELINE, accuracy=dense), int8=replace(INT8, accuracy=int8))
    assert report.within_budget is within


def test_a_metric_to_minimise_drops_when_it_rises():
    loss = [ModelFigures(a, 1e6, 10, 100, holdout_accuracy=a + 0.125) for a in (0.25, 0.375, 0.5)]
    report = assemble(Budget(0.125, "val_loss", "min"), *loss, control=ModelFigures(0.125, 1e6, 10, 100))
    assert report.accuracy_drop == 0.25
    assert report.holdout_accuracy_drop == 0.25
    assert report.control_accuracy_drop == 0.375
    assert report.control_holdout_accuracy_drop is None
    assert not report.within_budget


def test_what_was_not_measured_is_none():
    figures = [replace(f, holdout_accuracy=None) for f in (BASELINE, PRUNED, INT8)]
    report = assemble(BUDGET, *figures)
    assert report.speedup is None
    assert report.holdout_accuracy_drop is None
    assert report.control is None
    assert report.control_accuracy_drop is None
    assert (report.steps, report.engines, report.channels, report.notes, report.versions) == ((), (), (), (), {})


def test_tensorrt_is_quoted_before_openvino_before_onnxruntime():
    trt = (engine("tensorrt", "dense", "fp32", 2.0), engine("tensorrt", "pruned", "int8", 0.25))
    ort = (engine("onnxruntime", "dense", "fp32", 30.0), engine("onnxruntime", "pruned", "int8", 1.0))
    assert speed_pair((*ort, *ENGINES, *trt)) == trt
    assert speed_pair((*ort, *ENGINES)) == (ENGINES[0], ENGINES[2])
    assert speed_pair(ort) == ort
    # TensorRT without a dense float engine beside it proves no speedup
    assert speed_pair((trt[1], *ENGINES)) == (ENGINES[0], ENGINES[2])


def test_only_engines_under_the_same_conditions_are_compared():
    int8 = engine("openvino", "pruned", "int8", 3.0)
    for other in ({"batch_size": 8}, {"threads": 1}, {"device": "another CPU"}):
        assert speed_pair((engine("openvino", "dense", "fp32", 12.0, **other), int8)) is None


def test_the_fastest_int8_engine_counts_and_the_pruned_one_first():
    dense, slow, fast = (engine("openvino", m, p, t) for m, p, t in
                         (("dense", "fp32", 12.0), ("pruned", "int8", 4.0), ("pruned", "int8", 3.0)))  # fmt: skip
    unpruned = engine("openvino", "dense", "int8", 2.0)
    assert speed_pair((dense, slow, fast, unpruned)) == (dense, fast)
    assert speed_pair((dense, unpruned)) == (dense, unpruned)  # INT8 export without pruning


def test_the_fastest_engine_whose_own_score_is_within_the_budget_is_chosen():
    def scored(backend, precision, median, accuracy):
        return engine(backend, "pruned", precision, median, accuracy=accuracy)

    fp32, fp16, int8 = (
        scored("tensorrt", *x) for x in (("fp32", 2.0, 0.895), ("fp16", 0.8, 0.89), ("int8", 1.0, 0.88))
    )
    over, unscored = scored("tensorrt", "int8", 0.5, 0.8849), engine("tensorrt", "dense", "fp16", 0.25)
    cpu = scored("openvino", "int8", 0.125, 0.9)  # wall time, and not on the target
    budget = Budget(0.02, "val_acc")
    assert fastest_within((fp32, fp16, int8, unscored, cpu), budget, 0.90) == fp16
    assert fastest_within((fp32, fp16, over), Budget(0.015, "val_acc"), 0.90) == fp16
    assert fastest_within((fp32, over), Budget(0.015, "val_acc"), 0.90) == fp32
    assert fastest_within((fp32, int8), budget, 0.90) == int8  # a drop of exactly the budget
    assert fastest_within((over, cpu), Budget(0.001, "val_acc"), 0.90) == cpu
    assert fastest_within((over, unscored), Budget(0.001, "val_acc"), 0.90) is None
    assert fastest_within((fp32, over), Budget(0.005, "val_loss", "min"), 0.8849) == over
    report = assemble(BUDGET, BASELINE, PRUNED, INT8, engines=(fp32, fp16, int8))
    assert report.fastest_within_budget == fp16


def test_an_unknown_mode_or_an_empty_baseline_is_refused(sample):
    with pytest.raises(ConfigurationError, match="mode is 'up'"):
        sample(budget=Budget(0.01, "val_acc", "up"))
    with pytest.raises(ConfigurationError, match="file_bytes=0"):
        sample(baseline=replace(BASELINE, file_bytes=0))


def test_versions_are_those_installed():
    found = versions()
    assert list(found)[0] == "python"
    for name in ("torch", "lightning", "onnxruntime", "torch-pruning"):
        assert found[name] == metadata.version(name)
