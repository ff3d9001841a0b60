"""``hqp -m``: Hydra's sweepers are real, training is not: a run writes a report that follows from its settings."""

import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import networks
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from test_recipes import QUICK, SMALL

from hqp_lightning import app
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import Budget, EngineReport, Latency, ModelFigures, Report
from hqp_lightning.report import read_json, write_json


@pytest.fixture
def hqp(tmp_path, monkeypatch):
    """Call the command; returns its exit code. ``hqp.trained`` are the budgets of the runs that were really made."""

    def fit(cfg, checkpoint):
        budget = cfg.hqp.max_drop
        command.trained.append(budget)
        if budget > 0.9:
            raise ConfigurationError(f"max_drop={budget} is too much")
        dense = ModelFigures(accuracy=0.95, macs=100.0, params=10, file_bytes=40)
        int8 = dataclasses.replace(dense, accuracy=0.95 - budget, macs=50.0)
        times = ("dense", "fp32", 8.0), ("pruned", "int8", 1.0 / budget)
        engines = tuple(EngineReport("openvino", m, p, Latency(t, t, 9), 1, 2, "a CPU", "x") for m, p, t in times)
        figures = (True, budget, 0.9, 0.5, 8.0 * budget)
        report = Report(Budget(budget, "val_acc"), dense, int8, int8, *figures, engines=engines)
        Path(cfg.export.dirpath).mkdir(parents=True)
        write_json(report, Path(cfg.export.dirpath) / "report.json")
        return report

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["hqp", *arguments])
        try:
            app.main()
        except SystemExit as end:
            return end.code
        return 0

    command.trained = []
    monkeypatch.setattr(app, "_fit", fit)
    monkeypatch.chdir(tmp_path)
    yield command
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def test_a_failed_run_leaves_the_others_alone_and_is_listed(hqp, tmp_path, capsys):
    code = hqp("-m", "recipe=resnet18_digits", "hqp.max_drop=0.1,0.95,0.2", "hydra.sweep.dir=s")
    assert code == 1
    assert hqp.trained == [0.1, 0.95, 0.2]
    out = capsys.readouterr().out
    assert "failed: 1_resnet18_digits hqp.max_drop=0.95: ConfigurationError: max_drop=0.95 is too much" in out
    with (tmp_path / "s" / "pareto.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["pareto"] for r in rows] == ["True", "", "True"]
    assert (tmp_path / "s" / "pareto.png").stat().st_size > 1000


def test_a_sweep_goes_on_with_what_is_missing(hqp, tmp_path, capsys):
    sweep = ("-m", "recipe=resnet18_digits", "hqp.max_drop=0.1,0.2", "hydra.sweep.dir=s")
    assert hqp(*sweep) == 0
    deploy = tmp_path / "s" / "1_resnet18_digits" / "deploy"
    deploy.rename(tmp_path / "gone")
    hqp.trained.clear()
    assert hqp(*sweep, "resume=true") == 0
    assert hqp.trained == [0.2]
    assert read_json(deploy / "report.json") == read_json(tmp_path / "gone" / "report.json")


@pytest.mark.filterwarnings("ignore")  # the sweeper needs a release of Optuna that is older than what it imports
def test_optuna_optimizes_both_objectives_and_goes_on(hqp, tmp_path, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweep = ["-m", "sweep=optuna", "recipe=resnet18_digits", "hydra.sweep.dir=s"]
    sweep += ["hydra.sweeper.n_trials=3", "hqp.max_drop=interval(0.1, 0.99)", "hqp.round_to=8"]
    assert hqp(*sweep) in (0, 1)  # 1 if a trial came above 0.9, which fails
    first = hqp.trained.copy()
    assert len(set(first)) == 3
    solutions = OmegaConf.load(tmp_path / "s" / "optimization_results.yaml").solutions
    assert len(solutions) > 0
    for solution in solutions:
        budget = solution["params"]["hqp.max_drop"]
        assert list(solution["values"]) == [pytest.approx(0.95 - budget), pytest.approx(1 / budget)]
    hqp.trained.clear()
    hqp(*sweep, "resume=true")
    assert hqp.trained == [b for b in first if b > 0.9]  # the sampler asked for the same, and these were there


def test_a_run_alone_says_its_error_in_one_line(hqp, capsys):
    assert hqp("recipe=resnet18_digits", "hqp.max_drop=0.95", "hydra.run.dir=r") == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == "hqp: error: max_drop=0.95 is too much"


def test_the_whole_error_is_to_be_had(hqp, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigurationError, match=r"max_drop=0\.95 is too much"):
        hqp("recipe=resnet18_digits", "hqp.max_drop=0.95", "hydra.run.dir=r")


def test_unknown_keys_are_told_before_hydra(hqp, capsys):
    assert hqp("recipe=resnet18_digits", "hqp.max_dorp=0.1") == 1
    assert capsys.readouterr().err == "hqp: error: hqp.max_dorp is unknown; did you mean hqp.max_drop?\n"
    assert hqp.trained == []


def test_wrong_types_are_told_with_what_is_expected(hqp, capsys):
    assert hqp("recipe=resnet18_digits", "hqp.max_drop=small", "hydra.run.dir=r") == 1
    assert capsys.readouterr().err.endswith("hqp: error: hqp.max_drop is 'small' (str); expected float\n")


def test_help_and_cfg_need_no_more_than_they_say(hqp, capsys):
    assert hqp("--help") == 0
    shown = capsys.readouterr().out
    assert "hqp recipe=resnet18_digits hqp.max_drop=0.01" in shown
    for line in (
        "recipe: ",
        "model: lraspp_mobilenetv3, mobilenetv3_large, mobilenetv3_small, resnet18",
        "sweep: joblib, none, optuna",
    ):
        assert line in shown
    assert "callbacks/hqp" not in shown
    assert hqp("recipe=resnet18_digits", "hqp.max_drop=0.01", "--cfg", "job") == 0
    assert OmegaConf.create(capsys.readouterr().out).hqp.max_drop == 0.01


@pytest.mark.slow
def test_other_launchers_make_real_runs(tmp_path):
    paths = os.pathsep.join(map(str, (app.CONFIG_DIR.parent, Path(networks.__file__).parent)))
    environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}

    def start(launcher):
        pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
        command = [sys.executable, "-m", "hqp_lightning.app", "-m", f"sweep={launcher}", "recipe=resnet18_digits"]
        command += [QUICK, *SMALL, "control=false,maybe", f"hydra.sweep.dir={launcher}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    sweeps = {launcher: start(launcher) for launcher in ("joblib", "submitit")}  # most of it is their imports
    for launcher, process in sweeps.items():
        out, err = process.communicate(timeout=600)
        assert process.returncode == 1, err
        first = tmp_path / launcher / "0_resnet18_digits"
        assert read_json(first / "deploy" / "report.json").budget.max_drop == 0.99
        # The second run fails, and imports no torch.
        assert "failed: 1_resnet18_digits control=maybe: ConfigurationError: control must be of" in out
