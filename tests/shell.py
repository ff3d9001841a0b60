"""What a reader's shell would do with a line of the documentation, as far as a machine alone can, within seconds.

What takes a training or a board stops where that would begin: `hqp` builds everything and passes a batch through the
model, `hqp-engine` works on doubles of TensorRT, a benchmark reads its arguments. Nothing is downloaded.
"""

import argparse
import os
import re
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import tensorrt_doubles
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from packaging.requirements import Requirement
from pages import ROOT, commands
from report import report_samples
from torch.distributed.run import get_args_parser

from hqp_lightning import app, look_command, reproduce
from hqp_lightning.board import cli, cuda
from hqp_lightning.board.rtx import missing
from hqp_lightning.report import write_json
from hqp_lightning.standalone import debug_cli, int8_cli
from hqp_lightning.sweeps import hook

EXTRAS = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("optional-dependencies]")[1], re.M)


BUILT = set()


def build_without_training(cfg, checkpoint):
    """Stands for the training and the export: all that comes before them, on few images, then another run's report."""
    cfg.model.net.weights = None  # a download
    if (name := cfg.model.net.name) in BUILT and "segmentation" not in cfg.model.net._target_:
        cfg.model.net._target_ = "networks.quick"  # once is enough
        cfg.model.feature_layers = []  # names of the real one
    BUILT.add(name)
    cfg.data.image_size, cfg.data.batch_size = 32, 4
    if "num_workers" in cfg.data:
        cfg.data.num_workers = 0
    if cfg.model.checkpoint:
        torch.save(instantiate(cfg.model.net).state_dict(), cfg.model.checkpoint)
    for teacher in cfg.model.get("teachers") or ():
        net = teacher.net.net if "net" in teacher.net else teacher.net
        torch.save(instantiate({**net, "checkpoint": None}).state_dict(), net.checkpoint)
    model, data, _ = app.build(cfg, app._callbacks(cfg))
    data.prepare_data()
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    assert model(images).shape[:2] == (4, cfg.model.num_classes)  # and positions, where there are masks
    report = report_samples.sample(control=None)
    Path(cfg.export.dirpath).mkdir(parents=True, exist_ok=True)  # two runs within a second
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
    few = {"sweep=joblib": "hydra.launcher.n_jobs=1", "sweep=optuna": "hydra.sweeper.n_trials=2"}
    return run_main(app.main, "hqp", [*arguments, *(few[a] for a in arguments if a in few)])


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
        return 0 if reproduce.main(arguments) in (0, 1) else 2


def hqp_engine(*arguments):
    """On doubles of TensorRT and of the driver, in the export folder."""
    if arguments[0] == "profile":  # tests/board/test_profile.py runs it, on an archive that a run leaves
        return parsed_by(cli)(*arguments)
    if "--rtx" in arguments and (reason := missing()) is not None:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "tensorrt", tensorrt_doubles.tensorrt("10.3.0"))
        patched.setattr(cuda, "_load", tensorrt_doubles.Driver)
        patched.chdir("." if Path("hqp-engine.pyz").is_file() else "deploy")
        return cli.main(arguments)


def parsed_by(program):
    """A program that quantizes or compares: its own parser takes the arguments; tests/standalone runs it."""
    return lambda *arguments: 0 if program._parser().parse_args(arguments) else 1


def pip(install, *arguments):
    assert install == "install", "only the installation is looked at"
    for argument in (re.sub(r"^\.", "hqp-lightning", a) for a in arguments if a not in ("-e", "--no-deps")):
        assert Requirement(argument).extras <= set(EXTRAS), f"{argument}: there are {EXTRAS}"
    return 0


def python(script, *arguments):
    if script == "hqp-engine.pyz":
        return hqp_engine(*arguments)
    if script == "tests/killing.py":  # takes minutes; its arguments are numbers
        assert (ROOT / script).is_file()
        assert all(a.isdigit() for a in arguments)
        return 0
    with pytest.MonkeyPatch.context() as patched:
        if script.startswith("benchmarks/"):
            patched.syspath_prepend(str(ROOT / "benchmarks"))
            script = str(ROOT / script)
            if not script.endswith("figures.py"):  # that takes no time
                patched.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        return run_main(lambda: runpy.run_path(script, run_name="__main__") and 0, script, arguments)


def parse_and_stop(parser, parse=argparse.ArgumentParser.parse_args):
    """A script's own parser takes the arguments, and exits with 2 where it does not; nothing is measured."""
    parse(parser)
    raise SystemExit(0)


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
    "hqp-debug": parsed_by(debug_cli),
    "hqp-int8": parsed_by(int8_cli),
    "hqp-look": parsed_by(look_command),
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
    "srun": "needs SLURM; what it sets is in tests/loop/test_launchers.py",
    "sudo": "installs packages and sets clocks on a board",
}


def run(text):
    """Run shell lines; returns the exit code of the last one."""
    last = 0
    for program, *arguments in commands(text):
        assert last == 0
        print("$", program, *arguments)  # pytest shows where it stopped
        with pytest.MonkeyPatch.context() as patched:
            if program.startswith("PYTHONPATH="):
                patched.syspath_prepend(str(ROOT / program.removeprefix("PYTHONPATH=")))
                program, *arguments = arguments
            if program not in NOT_RUN:
                last = PROGRAMS[program](*arguments)
    return last
