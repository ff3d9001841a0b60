"""The commands and the YAML that the documentation shows, run page by page, in their order, in a folder of their own.

What takes a training or a board stops where that would begin: `hqp` builds everything and passes a batch through the
model, `hqp-engine` works on doubles of TensorRT, a benchmark reads its arguments. Nothing is downloaded.
"""

import argparse
import functools
import os
import re
import runpy
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest
import submitit
import tensorrt_doubles
import torch
import yaml
from app import foreign
from board.conftest import exported  # noqa: F401
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from packaging.requirements import Requirement
from pages import PAGES, ROOT, blocks, code, commands
from report import report_samples
from torch.distributed.run import get_args_parser

from hqp_lightning import app, comparison, reproduce
from hqp_lightning.board import cli, cuda
from hqp_lightning.report import write_json
from hqp_lightning.sweeps import hook

EXTRAS = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("optional-dependencies]")[1], re.M)


def build_without_training(cfg, checkpoint):
    """Stands for the training and the export: all that comes before them, on few images, then another run's report."""
    cfg.model.net.weights = None  # a download
    cfg.data.image_size, cfg.data.batch_size = 32, 4
    if "num_workers" in cfg.data:
        cfg.data.num_workers = 0
    if cfg.model.checkpoint:
        torch.save(instantiate(cfg.model.net).state_dict(), cfg.model.checkpoint)
    model, data, trainer = app._build(cfg, app._callbacks(cfg))
    assert len(trainer.callbacks) > 1
    data.prepare_data()
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    assert model(images).shape == (4, cfg.model.num_classes)
    report = report_samples.sample(control=None)
    Path(cfg.export.dirpath).mkdir(parents=True)
    write_json(report, Path(cfg.export.dirpath) / "report.json")
    return report


def run_main(main, program, arguments):
    """The exit code of a program that reads sys.argv."""
    with patch.object(sys, "argv", [program, *arguments]):
        try:
            return main() or 0
        except SystemExit as end:
            return end.code or 0
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None


def hqp(*arguments):
    arguments = [a.replace("recipe=NAME", "recipe=resnet18_digits") for a in arguments]
    few = {"sweep=joblib": "hydra.launcher.n_jobs=1", "sweep=optuna": "hydra.sweeper.n_trials=2"}
    return run_main(app.main, "hqp", arguments + [few[a] for a in arguments if a in few])


def hqp_pareto(folder):
    """Of the newest sweep, where the page names one of another day."""
    if not Path(folder).exists():
        max(Path(folder).parent.iterdir(), key=os.path.getmtime).rename(folder)
    return hook.main([folder])


def hqp_reproduce(*arguments):
    """The code 1 is an answer: the figures are those of another run."""

    def run(command, check):
        assert command[:3] == [sys.executable, "-m", "hqp_lightning.app"]
        assert hqp(*command[3:]) == 0

    with patch.object(reproduce.subprocess, "run", run):
        return {1: 0}.get(reproduce.main(arguments))


def hqp_engine(*arguments):
    """On doubles of TensorRT and of the driver, in the export folder."""
    here = os.getcwd()
    os.chdir("." if Path("hqp-engine.pyz").is_file() else "deploy")
    tensorrt = patch.dict(sys.modules, tensorrt=tensorrt_doubles.tensorrt("10.3.0"))
    with tensorrt, patch.object(cuda, "_load", tensorrt_doubles.Driver):
        code = cli.main(arguments)
    os.chdir(here)
    return code


def pip(install, *arguments):
    assert install == "install"
    for argument in (a.replace(".[", "hqp-lightning[") for a in arguments if a != "-e"):
        assert Requirement(argument).extras <= set(EXTRAS), f"{argument}: there are {EXTRAS}"
    return 0


def python(script, *arguments):
    if script == "hqp-engine.pyz":
        return hqp_engine(*arguments)
    if script == "src/train.py":  # the reader's own application
        return run_main(lambda: runpy.run_path(script, run_name="__main__") and 0, script, arguments)
    return benchmark(ROOT / script, arguments)


def benchmark(script, arguments):
    """Up to where its own parser has taken the arguments; the figures are drawn."""

    class Parsed(Exception):
        pass

    def parse(parser, real=argparse.ArgumentParser.parse_args):
        raise Parsed(real(parser))

    parser = argparse.ArgumentParser if script.name != "figures.py" else Parsed
    with patch.object(parser, "parse_args", parse, create=True), patch.object(sys, "path", [str(script.parent), *sys.path]):
        try:
            return run_main(lambda: runpy.run_path(str(script), run_name="__main__") and 0, str(script), arguments)
        except Parsed:
            return 0


def torchrun(*arguments):
    assert get_args_parser().parse_args(arguments).training_script == "train.py"
    return 0


def cd(folder):
    os.chdir(folder)
    return 0


def evaluate(substitution):
    return run(re.fullmatch(r"\$\((.*)\)", substitution)[1])


PROGRAMS = {
    "cd": cd,
    "eval": evaluate,
    "hqp": hqp,
    "hqp-pareto": hqp_pareto,
    "hqp-reproduce": hqp_reproduce,
    "pip": pip,
    "python": python,
    "python3": python,
    "torchrun": torchrun,
}
NOT_RUN = {
    "mkdocs": "needs the extra docs; CI builds the site with this command",
    "pytest": "is what runs this",
    "scp": "copies to a board",
    "srun": "needs SLURM; what it sets is in tests/callbacks/test_launchers.py",
    "sudo": "installs packages and sets clocks on a board",
}


def run(text):
    """Run shell lines; returns the exit code of the last one."""
    last = 0
    for program, *arguments in commands(text):
        assert last == 0
        print("$", program, *arguments)  # pytest shows where it stopped
        if program not in NOT_RUN:
            last = PROGRAMS[program](*arguments)
    return last


@pytest.fixture
def folder(tmp_path, monkeypatch, request, imagenet_root, cifar_root):
    """Where the commands run: DATA in all layouts, the export folder, a configuration and an application of one's own."""
    for path in (*imagenet_root.iterdir(), imagenet_root):
        (tmp_path / path.name).symlink_to(path)
    work = tmp_path / "work"
    shutil.copytree(request.getfixturevalue("exported"), work / "deploy")
    (work / "deploy" / "pictures").symlink_to(imagenet_root / "val")
    write_json(report_samples.sample(), work / "deploy" / "report.json")
    (work / "DATA").symlink_to(tmp_path)
    (work / "recipes").symlink_to(app.RECIPE_DIR)
    (work / "my_configs" / "recipe").mkdir(parents=True)
    shutil.copy(app.RECIPE_DIR / "resnet18_digits.yaml", work / "my_configs" / "recipe" / "my_recipe.yaml")
    foreign.write(work / "src")
    monkeypatch.chdir(work)
    monkeypatch.setattr(app, "_fit", build_without_training)
    monkeypatch.setattr(app, "_dense_figures", lambda cfg, report: report_samples.CONTROL)
    monkeypatch.setattr(comparison, "compare", lambda cfg, report, build: None)
    in_this_process = functools.partial(submitit.AutoExecutor, cluster="debug")
    monkeypatch.setattr(submitit, "AutoExecutor", lambda cluster, **settings: in_this_process(**settings))
    return work


def shell(page):
    """The shell blocks of a page, and the commands within its lines."""
    for language, text in code(page):
        if language == "bash" or (language is None and " " in text and text.split()[0] in {*PROGRAMS, *NOT_RUN}):
            yield text


WITH_COMMANDS = {str(page.relative_to(ROOT)): list(shell(page)) for page in PAGES if any(shell(page))}


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_of_a_page_run(page, folder):
    for text in WITH_COMMANDS[page]:
        assert run(text) == 0
