import dataclasses
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from test_recipes import QUICK, SMALL, composed, small

from hqp_lightning import app
from hqp_lightning.configs import cause
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import Budget, ModelFigures, Report
from hqp_lightning.report import read_json


def _report(mode="max", holdout=0.90):
    dense = ModelFigures(accuracy=0.95, macs=100.0, params=10, file_bytes=40, holdout_accuracy=holdout)
    int8 = dataclasses.replace(dense, accuracy=0.94, file_bytes=4)
    return Report(Budget(0.015, "val_acc", mode), dense, int8, int8, True, 0.01, 0.9, 0.0, 2.0)


def test_drop_against_the_control_by_hand():
    control = ModelFigures(accuracy=0.96, macs=100.0, params=10, file_bytes=40, holdout_accuracy=0.93)
    amended = app.with_control(_report(), control)
    assert amended.control == control
    assert amended.control_accuracy_drop == pytest.approx(0.02)
    assert amended.control_holdout_accuracy_drop == pytest.approx(0.03)
    assert app.with_control(_report("min"), control).control_accuracy_drop == pytest.approx(-0.02)
    assert app.with_control(_report(holdout=None), control).control_holdout_accuracy_drop is None


@pytest.mark.slow
def test_control_is_the_dense_model_trained_as_long(tmp_path, imagenette_root):
    settings = ["model.lr=0.01", "trainer.max_epochs=3", "trainer.limit_train_batches=8", "data.batch_size=16"]
    cfg = small("resnet18_digits", tmp_path, imagenette_root, "control=true", "hqp.start_epoch=1", QUICK, *settings)
    report = app.run(cfg)
    assert report == read_json(tmp_path / "deploy" / "report.json")
    assert report.control is not None
    assert report.control.accuracy >= report.baseline.accuracy
    assert report.control.macs == report.baseline.macs
    assert report.control_accuracy_drop == pytest.approx(report.control.accuracy - report.int8.accuracy)
    # The control's checkpoint scores what is reported.
    (checkpoint,) = (tmp_path / "control").glob("*.ckpt")
    model, data, trainer = app.build(cfg, [], suffix="/again")
    (scores,) = trainer.validate(model, data, ckpt_path=checkpoint, verbose=False)
    expected = report.control.accuracy if report.control != report.baseline else pytest.approx(scores["val_acc"], abs=1)
    assert scores["val_acc"] == pytest.approx(expected)
    assert sum(p.numel() for p in model.net.parameters()) == report.baseline.params


def test_control_that_gets_worse_gives_way_to_the_baseline(tmp_path, imagenette_root):
    cfg = small("resnet18_digits", tmp_path, imagenette_root, "trainer.max_epochs=1")
    perfect = dataclasses.replace(_report(), baseline=dataclasses.replace(_report().baseline, accuracy=1.0))
    assert app._dense_figures(cfg, perfect) == perfect.baseline


def test_the_same_seed_gives_the_same_start_and_data(tmp_path, imagenette_root):
    cfg = small("resnet18_digits", tmp_path, imagenette_root)
    (first, data, _), (second, again, _) = (app.build(cfg, []) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    data.setup("fit")
    again.setup("fit")
    for (x, y), (x2, y2) in zip(data.train_dataloader(), again.train_dataloader(), strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_missing_values_are_named_before_anything_is_loaded():
    cfg = composed("resnet18_imagenette", "output_dir=none")
    with pytest.raises(ConfigurationError, match=r"no value for data.root, model.checkpoint; add data.root=... model"):
        app.run(cfg)


@pytest.mark.parametrize(
    ("override", "message"),
    [("control=maybe", "control must be of type bool, got 'maybe'"), ("seed=x", "seed must be of type int, got 'x'")],
)
def test_wrong_types_are_refused(tmp_path, imagenette_root, override, message):
    with pytest.raises(ConfigurationError, match=message):
        app.run(small("resnet18_digits", tmp_path, imagenette_root, override))


def test_control_needs_something_to_compare_with(tmp_path):
    cfg = composed("resnet18_digits", f"output_dir={tmp_path}", "hqp=none", "control=true")
    with pytest.raises(ConfigurationError, match="it needs hqp and export"):
        app.run(cfg)


def test_unknown_recipes_and_keys_are_refused_by_hydra():
    with pytest.raises(MissingConfigException, match="(?s)Could not find 'recipe/nope'.*resnet18_digits"):
        composed("nope")
    with pytest.raises(ConfigCompositionException, match="hqp.max_dorp"):
        composed("resnet18_digits", "hqp.max_dorp=0.1")


def test_an_error_of_ours_is_found_behind_hydras():
    cfg = composed("resnet18_digits", "data.batch_size=0")
    with pytest.raises(InstantiationException) as caught:
        app.build(cfg, [])
    found = cause(caught.value)
    assert isinstance(found, ConfigurationError)
    assert "batch_size=0" in str(found)


def test_the_command_says_a_bad_value_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hqp", "recipe=resnet18_digits", "hqp.max_drop=1.5"])
    with pytest.raises(SystemExit) as end:
        app.main()
    GlobalHydra.instance().clear()
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("hqp: error: ")
    assert "1.5" in line


@pytest.mark.slow
def test_a_sweep_of_real_runs_from_any_folder(tmp_path, monkeypatch, capsys):
    overrides = [QUICK, *(o for o in SMALL if "max_drop" not in o), "hqp.max_drop=0.98,0.99"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hqp", "-m", "recipe=resnet18_digits", *overrides])
    app.main()
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    reports = [read_json(p) for p in sorted(tmp_path.glob("outputs/multirun/*/*_resnet18_digits/deploy/report.json"))]
    assert [r.budget.max_drop for r in reports] == [0.98, 0.99]
    assert capsys.readouterr().out.count("report.html") >= 2
