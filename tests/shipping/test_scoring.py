from types import SimpleNamespace

import pytest
import torch
from classifier import Classifier
from lightning.pytorch import Callback, LightningDataModule

from hqp_lightning.shipping import scoring
from hqp_lightning.shipping.scoring import score, second_trainer


class Shifted(LightningDataModule):
    """Augments on the device, as people do; whoever leaves the hook out sees other labels."""

    def __init__(self, train, val):
        super().__init__()
        self.train_dataloader, self.val_dataloader = lambda: train, lambda: val
        self.stages = []

    def setup(self, stage):
        self.stages.append(stage)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return 1 - x, (y + 1) % 10


class Scored(Callback):
    def on_fit_end(self, trainer, pl_module):
        self.score = score(trainer, pl_module, trainer.val_dataloaders, "val_acc")
        self.attached = pl_module.trainer is trainer


def test_scores_are_those_of_validate_with_the_batch_hooks_of_the_datamodule(loaders, make_trainer):
    model, data, scored = Classifier(), Shifted(*loaders), Scored()
    trainer = make_trainer(4, [scored])
    trainer.fit(model, datamodule=data)
    assert scored.attached
    assert data.stages == ["fit"]
    assert data.trainer is trainer
    (expected,) = make_trainer(1, []).validate(model, datamodule=data, verbose=False)
    (without,) = make_trainer(1, []).validate(model, loaders[1], verbose=False)
    assert scored.score == pytest.approx(expected["val_acc"], abs=1e-7)
    assert scored.score > without["val_acc"] + 0.1


@pytest.mark.parametrize(
    ("device", "accelerator", "devices"),
    [("cpu", "cpu", 1), ("cuda:1", "cuda", [1]), ("mps:0", "mps", 1), ("xla:0", "auto", 1)],
)
def test_scores_are_taken_on_the_device_that_the_user_chose(device, accelerator, devices, monkeypatch):
    """``Trainer(devices=[1])``: the first GPU may be somebody else's."""
    asked = []
    monkeypatch.setattr(scoring, "Trainer", lambda **settings: asked.append(settings))
    second_trainer(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device))), logger=False)
    assert (asked[0]["accelerator"], asked[0]["devices"]) == (accelerator, devices)
