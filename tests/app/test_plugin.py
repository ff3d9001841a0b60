"""Other people's applications: Hydra ones find ``callbacks: hqp/default``, and LightningCLI reads our callbacks."""

import functools
import inspect
import os
import runpy
import sys
import types

import foreign
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from processes import exit_codes

import hqp_lightning
from hqp_lightning import app
from hqp_lightning.configs import check_values
from hqp_lightning.report import read_json


@pytest.fixture
def folder(tmp_path):
    foreign.write(tmp_path)
    return tmp_path


def composed(folder, *overrides):
    with initialize_config_dir(str(folder / "configs"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("callbacks=hqp/default", ["hqp_pruning", "hqp_int8"]),
        ("callbacks=hqp/pruning", ["hqp_pruning"]),
        ("callbacks=hqp/int8", ["hqp_int8"]),
        ("callbacks=[default,hqp/default]", ["early_stopping", "hqp_pruning", "hqp_int8"]),
        ("callbacks=mine", ["early_stopping", "hqp_pruning", "hqp_int8"]),
    ],
)
def test_a_foreign_application_selects_our_callbacks(folder, override, names):
    cfg = composed(folder, override)
    assert list(cfg.callbacks) == names
    assert list(cfg) == ["seed", "callbacks", "trainer"]  # nothing else of ours is to be seen
    if override == "callbacks=mine":
        assert cfg.callbacks.hqp_pruning.max_drop == 0.03


def test_the_package_may_be_chosen_as_hydra_allows(folder):
    cfg = composed(folder, "~callbacks", "+callbacks@trainer.callbacks=hqp/default")
    assert list(cfg.trainer.callbacks) == ["hqp_pruning", "hqp_int8"]


@pytest.mark.parametrize("name", ["hqp_pruning", "hqp_int8"])
def test_every_argument_is_there_with_its_default(folder, name):
    node = composed(folder, "callbacks=hqp/default").callbacks[name]
    OmegaConf.set_struct(node, False)
    taken = inspect.signature(hqp_lightning.HQPPruning if name == "hqp_pruning" else hqp_lightning.Int8Export)
    assert {k for k in node if not k.startswith("_")} == set(taken.parameters) - {"loss_fn"}
    for key, parameter in taken.parameters.items():
        if key not in ("monitor", "max_drop", "dirpath", "loss_fn", "ignore"):
            assert node[key] == parameter.default
    if "dirpath" in taken.parameters:
        assert OmegaConf.to_container(node, resolve=False)["dirpath"] == "${hydra:runtime.output_dir}/deploy"
        node.dirpath = str(folder)
    check_values(OmegaConf.create({name: node}))
    assert type(instantiate(node)).__name__ in ("HQPPruning", "Int8Export")


def test_our_own_command_does_not_see_the_group():
    with initialize_config_dir(str(app.CONFIG_DIR), version_base="1.3"):
        from hydra.core.global_hydra import GlobalHydra

        assert "callbacks" not in GlobalHydra.instance().config_loader().list_groups("")


def called_in(folder, command):
    """What ``python train.py ...`` does there, in this process; what it says goes into a file."""
    os.chdir(folder)
    told = os.open("told.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(told, 1)
    os.dup2(told, 2)
    sys.argv[:] = command
    runpy.run_path(command[0], run_name="__main__")


@pytest.mark.slow
def test_a_foreign_application_trains_prunes_and_exports(folder):
    command = ["train.py", "callbacks=[default,hqp/default]", "hydra.run.dir=run"]
    command += ["callbacks.hqp_pruning.max_drop=0.99", "callbacks.hqp_int8.engines=[onnxruntime]"]
    command += ["callbacks.hqp_pruning.step=0.3", "callbacks.hqp_int8.latency_runs=3", "callbacks.hqp_int8.rtx=[]"]
    codes = exit_codes(functools.partial(called_in, folder, command))
    assert codes == [0], (folder / "told.txt").read_text()
    report = read_json(folder / "run" / "deploy" / "report.json")
    assert report.budget.monitor == "val/acc"
    assert report.pruned.macs < report.baseline.macs
    assert (folder / "run" / "deploy" / "model.int8.onnx").is_file()


CLI = """
seed_everything: 1
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  callbacks:
    - class_path: hqp_lightning.HQPPruning
      init_args:
        monitor: val/acc
        max_drop: 0.99
        step: 0.3
        loss_fn: cli_losses.per_sample
    - class_path: hqp_lightning.Int8Export
      init_args:
        dirpath: DIRPATH
        calibration_batches: 2
        engines: [onnxruntime]
        latency_runs: 3
        loss_fn: cli_losses.per_sample
model:
  width: 16
"""


def test_lightning_cli_reads_our_callbacks_from_yaml(folder, monkeypatch):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    names, seen = {}, []
    exec(foreign.TRAIN, names)  # the same model and data as above

    def per_sample(pl_module, batch):  # as docs/existing-trainer.md has it, without annotations
        seen.append(len(batch[1]))
        return torch.nn.functional.cross_entropy(pl_module(batch[0]), batch[1], reduction="none")

    losses = types.ModuleType("cli_losses")
    losses.per_sample, per_sample.__module__, per_sample.__qualname__ = per_sample, "cli_losses", "per_sample"
    monkeypatch.setitem(sys.modules, "cli_losses", losses)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py"])  # pytest's own options are none of its
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own calls of jsonargparse
    (folder / "cli.yaml").write_text(CLI.replace("DIRPATH", str(folder / "deploy")))
    cli = LightningCLI(names["Net"], names["Data"], save_config_callback=None, args=["fit", "--config", "cli.yaml"])
    assert cli.model.net[0].out_channels < 16 or cli.model.net[3].out_channels < 16
    report = read_json(folder / "deploy" / "report.json")
    assert seen
    assert report.budget.max_drop == 0.99
    assert report.pruned.macs < report.baseline.macs
