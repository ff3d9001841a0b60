"""The Python of README and docs is run; the commands in the recipes' headers have keys and options that exist."""

import re
import shlex

import lightning as L
import pytest
import torch
from pages import PAGES, ROOT, blocks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import app
from hqp_lightning.configs import check_overrides

HEADERS = {
    line.removeprefix("#").strip()
    for recipe in sorted((ROOT / "recipes").glob("*.yaml"))
    for line in recipe.read_text(encoding="utf-8").splitlines()
    if line.startswith("#   hqp ")
}


@pytest.mark.parametrize("command", sorted(HEADERS))
def test_commands_of_recipes_have_keys_and_options_that_exist(command):
    check_overrides(shlex.split(command)[1:], app.CONFIG_DIR)


def test_there_are_commands():
    assert "hqp recipe=resnet18_digits" in HEADERS
    assert len(HEADERS) > 10


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\b((?:tests|benchmarks|findings|conf|recipes)/[\w./-]*\w)", text):
        assert "NAME" in path or (ROOT / path).exists(), path


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
