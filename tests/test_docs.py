"""What README and docs show is executed: Python as it stands, hqp commands as far as their keys and options."""

import re
import shlex
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import app
from hqp_lightning.configs import check_overrides, offer_timm

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "recipes" / "README.md"]


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands():
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    lines += re.findall(r"`(hqp [^`]*)`", "\n".join(p.read_text(encoding="utf-8") for p in PAGES))
    lines += [line.removeprefix("#") for file in recipes for line in file.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        words = shlex.split(line.split("&&")[-1], comments=True) if line.strip().startswith(("hqp ", "pip ")) else []
        if words[:1] == ["hqp"] and "recipe=NAME" not in words:
            yield " ".join(words), words[1:]


COMMANDS = dict(commands())


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_keys_and_options_that_exist(command):
    arguments = [a for a in COMMANDS[command] if a not in ("--help", "--cfg", "job")]
    if arguments and not any(a.startswith("-") and a != "-m" for a in arguments):
        offer_timm(arguments, app.CONFIG_DIR)
        check_overrides(arguments, app.CONFIG_DIR)


def test_there_are_commands():
    assert "hqp recipe=resnet18_digits" in COMMANDS
    assert len(COMMANDS) > 10


class MyModule(L.LightningModule):
    """Stands for the reader's own module."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class MyData(L.LightningDataModule):
    """Two classes that differ in brightness."""

    def train_dataloader(self):
        labels = torch.arange(64) % 2
        noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(noise + 4 * labels[:, None, None, None], labels), batch_size=16)

    val_dataloader = train_dataloader


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0")  # TensorBoard is optional
def test_python_blocks_run(tmp_path, monkeypatch):
    """In the order of the pages, in one folder: what the README's training writes, the other pages read."""
    namespace = {"model": MyModule(), "datamodule": MyData(), "MyModule": MyModule}
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        if page.name == "supported.md":  # a longer story, in test_docs_supported.py
            continue
        for block in blocks(page, "python"):
            exec(compile(block, page.name, "exec"), namespace)
    assert (tmp_path / "deploy" / "model.int8.onnx").is_file()
    assert namespace["report"].budget.max_drop == 0.015
