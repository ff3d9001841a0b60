from types import SimpleNamespace

import pytest
import torch
from classifier import Classifier
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers.logger import DummyLogger

from hqp_lightning.shipping import second
from hqp_lightning.shipping.scoring import score
from hqp_lightning.shipping.second import second_trainer


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


def test_scores_are_those_of_validate_with_the_batch_hooks_of_the_datamodule(small_loaders, make_trainer):
    model, data, scored = Classifier(), Shifted(*small_loaders), Scored()
    trainer = make_trainer(4, [scored])
    trainer.fit(model, datamodule=data)
    assert scored.attached
    assert data.stages == ["fit"]
    assert data.trainer is trainer
    (expected,) = make_trainer(1, []).validate(model, datamodule=data, verbose=False)
    (without,) = make_trainer(1, []).validate(model, small_loaders[1], verbose=False)
    assert scored.score == pytest.approx(expected["val_acc"], abs=1e-7)
    assert scored.score > without["val_acc"] + 0.1


class Curious(Classifier):
    """Its validation asks the trainer for what a training has, and steps a schedule of its own by the score."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()
        self.optimizers().zero_grad()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)]

    def on_validation_epoch_end(self):
        self.logger.experiment.add_histogram("weights", self.net[0].weight, self.global_step)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append((rate, self.current_epoch, self.global_step, self.trainer.max_epochs, self.logger.log_dir))
        self.lr_schedulers().step(1.0)


def test_hooks_find_what_a_training_has_and_leave_it_as_it_is(loaders, make_trainer, tmp_path):
    class Writing(DummyLogger):
        log_dir = str(tmp_path)

        def log_metrics(self, metrics, step=None):
            assert not ended  # what an export scores is of no epoch

    class Scored(Callback):
        def on_fit_end(self, trainer, pl_module):
            ended.append(1)
            plan = pl_module.lr_schedulers()
            state = dict(plan.state_dict())
            for _ in range(2):
                score(trainer, pl_module, trainer.val_dataloaders, "val_acc")
            assert plan.state_dict() == state
            assert pl_module.optimizers().param_groups[0]["lr"] == 0.05

    ended, model, logger = [], Curious(), Writing()
    make_trainer(2, [Scored()], logger=logger, limit_train_batches=3).fit(model, *loaders)
    assert model.seen == [
        (0.1, 0, 3, 2, logger.log_dir),
        (0.1, 1, 6, 2, logger.log_dir),
        *[(0.05, 2, 6, 2, logger.log_dir)] * 2,
    ]


@pytest.mark.parametrize(
    ("device", "accelerator", "devices"),
    [("cpu", "cpu", 1), ("cuda:1", "cuda", [1]), ("mps:0", "mps", 1), ("xla:0", "auto", 1)],
)
def test_scores_are_taken_on_the_device_that_the_user_chose(device, accelerator, devices, monkeypatch):
    """``Trainer(devices=[1])``: the first GPU may be somebody else's."""
    asked = []
    monkeypatch.setattr(second, "Trainer", lambda **settings: asked.append(settings))
    second_trainer(SimpleNamespace(loggers=[], strategy=SimpleNamespace(root_device=torch.device(device))))
    assert (asked[0]["accelerator"], asked[0]["devices"]) == (accelerator, devices)
