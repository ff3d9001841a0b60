import json
from types import ModuleType

import pytest
import torch
from classifier import Classifier
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import look_command
from hqp_lightning.look_command import main


class Numbers(LightningDataModule):
    """What a user's datamodule is to the command: built without arguments."""

    def val_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        return DataLoader(TensorDataset(torch.rand(16, 1, 8, 8, generator=generator), torch.arange(16) % 10), 16)


class Needy(Numbers):
    def __init__(self, root):
        super().__init__()


class NoLoader(LightningDataModule):
    pass


@pytest.fixture
def package(monkeypatch):
    """``my.pkg``, as on a user's path."""
    module = ModuleType("mypkg")
    module.__dict__.update(Classifier=Classifier, Numbers=Numbers, Needy=Needy, NoLoader=NoLoader, number=3)
    module.__dict__.update(bare=lambda: nn.Linear(1, 1))
    monkeypatch.setitem(__import__("sys").modules, "mypkg", module)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(3)
    model = Classifier()
    path = tmp_path / "my.ckpt"
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save({**content, "pytorch-lightning_version": "2.4.0"}, path)
    return path


@pytest.fixture
def seen(monkeypatch):
    """What the command would look at; tests/looking looks."""
    found = []
    monkeypatch.setattr(look_command, "look", lambda *given: found.append(given))
    yield found
    GlobalHydra.instance().clear()


def test_a_module_with_its_checkpoint_and_data(package, checkpoint, seen, tmp_path):
    arguments = ["--module", "mypkg:Classifier", "--checkpoint", str(checkpoint), "--datamodule", "mypkg:Numbers"]
    assert main([*arguments, "-o", str(tmp_path / "out"), "--samples", "64"]) == 0
    ((_, module, data, folder, samples),) = seen
    expected = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(t, expected[n]) for n, t in module.state_dict().items())
    assert isinstance(data, Numbers)
    assert (folder, samples) == (tmp_path / "out", 64)


def test_a_recipe_brings_its_model_data_and_pruning(seen, tmp_path):
    assert main(["recipe=resnet18_digits", "hqp.round_to=16", "-o", str(tmp_path)]) == 0
    ((trainer, module, data, _, _),) = seen
    (pruning,) = trainer.callbacks
    assert pruning.options.round_to == 16
    assert trainer.loggers == []
    assert type(module.net).__name__ == "ResNet"
    assert type(data).__name__ == "DigitsDataModule"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_whole_command_in_80_columns(package, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    torch.manual_seed(0)
    assert main(["--module", "mypkg:Classifier", "--datamodule", "mypkg:Numbers", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "step=" in printed
    assert "not pruned: 11: its channels are the network's outputs" in printed
    tables = [line for line in printed.splitlines() if " %" in line or "─" in line]
    assert tables
    assert max(map(len, tables)) <= 80
    content = json.loads((tmp_path / "out" / "look.json").read_text())
    assert content["samples"] == 16


MODULE, DATA = ["--module", "mypkg:Classifier"], ["--datamodule", "mypkg:Numbers"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say which model: recipe=NAME, or --module"),
        (["recipe=resnet"], "no recipe=resnet"),
        (["recipe=resnet18_digits", "hqp.stepp=1"], "hqp.stepp is unknown; did you mean hqp.step?"),
        (["recipe=resnet18_digits", "hqp.step=x"], "hqp.step is 'x' (str); expected float"),
        (["recipe=resnet18_imagenette"], "no value for data.root, model.checkpoint; add data.root=... "),
        (["recipe=resnet18_imagenette", "data.root=no", "model.checkpoint=no.pth"], "Imagenette not found"),
        (["recipe=resnet18_digits", "model.checkpoint=nowhere.pth"], "nowhere.pth"),
        (["recipe=resnet18_digits", *DATA], "--checkpoint and --datamodule belong to --module"),
        ([*MODULE, "hqp.step=0.1"], "hqp.step=0.1 is a setting of a recipe"),
        (["--module", "mypkg.Classifier"], "--module mypkg.Classifier: expected package.module:Name"),
        (["--module", "nopkg:Classifier"], "--module nopkg:Classifier: No module named 'nopkg'"),
        (["--module", "mypkg:Clasifier"], "--module mypkg:Clasifier: mypkg has no Clasifier"),
        (["--module", "mypkg:number"], "--module mypkg:number is a int; expected a class or a function"),
        (["--module", "mypkg:bare"], "--module mypkg:bare gives a Linear, no LightningModule"),
        ([*MODULE, "--checkpoint", "nowhere.ckpt"], "--checkpoint nowhere.ckpt: there is no such file"),
        ([*MODULE, "--datamodule", "mypkg:Needy"], "missing 1 required positional argument: 'root'"),
        ([*MODULE, "--datamodule", "mypkg:Classifier"], "gives a Classifier, no LightningDataModule"),
        ([*MODULE, "--datamodule", "mypkg:NoLoader"], "NoLoader gives nothing to validate"),
        ([*MODULE, *DATA, "--samples", "0"], "samples=0 must be at least 1"),
    ],
)
def test_what_can_not_work_is_a_line(arguments, said, package, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    GlobalHydra.instance().clear()
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("hqp-look: ")]
    assert said in line


def test_files_that_are_no_checkpoint_are_refused_in_a_line(package, capsys, tmp_path):
    bad, other, foreign = tmp_path / "bad.ckpt", tmp_path / "other.ckpt", tmp_path / "foreign.ckpt"
    bad.write_bytes(b"no checkpoint")
    torch.save({"weights": torch.zeros(1)}, other)
    torch.save({"state_dict": {"x": torch.zeros(1)}, "pytorch-lightning_version": "2.4.0"}, foreign)
    for path, said in ((bad, "can't be read"), (other, "holds no 'state_dict'"), (foreign, "does not fit Classifier")):
        assert main([*MODULE, "--checkpoint", str(path), *DATA]) == 1
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("hqp-look: ")]
        assert said in line
