from dataclasses import replace

import pytest
from report_samples import ENGINES, STEPS, engine

from hqp_lightning.records import Budget
from hqp_lightning.report import from_dict, step_line, to_dict
from hqp_lightning.report.html import render_html
from hqp_lightning.report.rows import model_rows
from hqp_lightning.report.sentences import fastest, other_drops, verdict


def test_a_kept_step_in_one_line():
    line = step_line(STEPS[1], baseline_macs=2e9, max_drop=0.015, monitor="val_acc")
    assert line == (
        "hqp step 2 kept: 500 M MACs (-75.0 %), val_acc 0.8950 (drop 0.0050 of 0.0150), 96 channels, surgery 0.5 s"
    )


def test_a_step_that_was_not_kept_gives_its_reason_on_the_same_line():
    step = replace(STEPS[2], reason="drop 0.6000\nexceeds 0.0150")
    assert step_line(step, baseline_macs=2e9, max_drop=0.015, monitor="val_acc") == (
        "hqp step 3 rolled back: 400 M MACs (-80.0 %), val_acc 0.3000 (drop 0.6000 of 0.0150), 32 channels, "
        "surgery 0.5 s; drop 0.6000 exceeds 0.0150"
    )


def test_a_refused_step_has_no_score():
    assert step_line(STEPS[3]) == (
        "hqp step 4 refused: 450 M MACs, not judged, 16 channels; conv1 would keep no channel"
    )


def test_the_verdict_says_when_smaller_is_better(sample):
    report = sample(budget=Budget(0.015, "val_loss", "min"))
    assert verdict(report) == (
        "WITHIN BUDGET: INT8 val_loss (smaller is better) is 0.8900 against 0.9000 dense, "
        "a drop of -0.0100 where 0.0150 is allowed"
    )


def test_drops_from_a_better_score_than_the_dense_models(sample):
    report = sample(reference=0.904)
    assert (report.accuracy_drop, report.within_budget) == (pytest.approx(0.014), True)
    assert "against the baseline 0.9040 (0.9000 dense), a drop of 0.0140" in verdict(report)
    assert "against the baseline 0.9040 (0.9000 dense): a drop of <b>0.0140</b>" in render_html(report)
    dense, *_, int8 = model_rows(report)
    assert (dense.figures.accuracy, int8.drop) == (0.9, pytest.approx(0.014))
    assert from_dict(to_dict(report)) == report
    assert sample(reference=0.9) == sample()


def test_the_drops_come_with_their_interval_where_the_samples_are_known(sample):
    # by hand: sqrt((0.89 * 0.11 + 0.87 * 0.13) / 1000) * 1.96 = 0.0285
    held = other_drops(sample(samples=None, holdout_samples=1000))[0]
    assert held == (
        "On held-out data, which no decision saw, the drop is 0.0200 and lies within -0.0085 ... 0.0485 with 95 % "
        "confidence (1,000 images)."
    )
    assert other_drops(sample(samples=200))[0].startswith("On the data of the decisions the drop lies within -0.05")
    assert "200 images" in other_drops(sample(samples=200))[0]
    loss = other_drops(sample(budget=Budget(0.015, "val_loss", "min"), holdout_samples=1000))
    assert not any("confidence" in line for line in loss)


def test_the_drop_over_all_images_counts_both_halves_by_their_sizes(sample):
    # by hand: (0.90 * 3 + 0.89) / 4 = 0.8975 and (0.89 * 3 + 0.87) / 4 = 0.885;
    # 1.96 * sqrt((0.8975 * 0.1025 + 0.885 * 0.115) / 4000) = 0.0136
    assert other_drops(sample(samples=3000, holdout_samples=1000))[2] == (
        "From the dense model these are drops of 0.0100 and 0.0200; over both, by their sizes, the drop is 0.0125 and "
        "lies within -0.0011 ... 0.0261 with 95 % confidence (4,000 images)."
    )
    assert not any("over both" in line for line in other_drops(sample(samples=3000)))


def test_the_engine_to_deploy_and_what_became_of_int8(sample):
    int8, fp16 = (
        engine("tensorrt", "pruned", p, t, accuracy=a) for p, t, a in (("int8", 2.5, 0.89), ("fp16", 2.0, 0.893))
    )
    start = "Fastest engine within the budget: pruned"
    alone = f"{start} int8 on tensorrt, 2.50 ms, 400 images/s, val_acc 0.8900 (pruned-int8.onnx)."
    faster = f"{start} fp16 on tensorrt, 2.00 ms, 500 images/s, val_acc 0.8930 (pruned-fp16.onnx)."
    assert fastest(sample(engines=(int8,))) == alone
    assert fastest(sample(engines=(int8, fp16))) == f"{faster} INT8 is slower here: 2.50 ms, 0.8900."
    over = replace(int8, accuracy=0.5, latency_ms=replace(int8.latency_ms, median=1.0))
    assert fastest(sample(engines=(over, fp16))) == f"{faster} INT8 is over the budget here: 1.00 ms, 0.5000."
    half = replace(int8, precision="int8+bf16", latency_ms=fp16.latency_ms)
    assert fastest(sample(engines=(int8, half))).endswith(
        "INT8 with its float parts in float32 is slower here: 2.50 ms, 0.8900."
    )
    assert fastest(sample(engines=(over,))) == "No engine that was scored is within the budget."
    assert fastest(sample(engines=ENGINES)) == ""
