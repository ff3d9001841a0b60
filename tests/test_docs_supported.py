"""The code that the documentation shows runs."""

import re
from pathlib import Path

import pytest
import torch
from classifier import Classifier
from lightning.pytorch import LightningDataModule, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import load_pruned
from hqp_lightning.report import read_json

DOCS = Path(__file__).parents[1] / "docs"


class Digits(LightningDataModule):
    def __init__(self):
        super().__init__()
        data = load_digits()
        self.x = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
        self.y = torch.tensor(data.target)

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.x[:640], self.y[:640]), 32)

    def val_dataloader(self):
        return DataLoader(TensorDataset(self.x[1200:1400], self.y[1200:1400]), 64)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory",
    "ignore:Precision bf16-mixed is not supported by the model summary",
    "ignore:Starting from v1.9.0",  # TensorBoard is optional
)
def test_the_loop_with_everything_in_it(tmp_path, monkeypatch, capsys):
    code, mixin = re.findall(r"```python\n(.*?)```", (DOCS / "supported.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    seed_everything(0, verbose=False)
    names = {"MyModule": Classifier, "datamodule": Digits()}
    exec(code, names)
    report = read_json("deploy/report.json")
    assert report.within_budget
    assert {r.epoch for r in report.steps} & {4, 5}  # made after the resumption
    checkpoint = torch.load("checkpoints/last.ckpt", weights_only=True)
    (groups,) = (state["param_groups"] for state in checkpoint["optimizer_states"])
    assert [g["weight_decay"] for g in groups] == [0.05]
    assert isinstance(names["MyTraining"]().configure_optimizers()[0][0], torch.optim.AdamW)
    assert checkpoint["epoch"] == 5
    exec(mixin, names)
    loaded = load_pruned(Classifier, "deploy/pruned.ckpt")
    assert sum(p.numel() for p in loaded.net.parameters()) == report.pruned.params
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in names["pruned"].state_dict().items())
