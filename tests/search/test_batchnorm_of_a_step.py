"""BatchNorm after a step of a real run: folded, frozen, broken images, a last batch of one sample."""

import copy

import pytest
import torch
from classifier import Scripted
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import HQPPruning


class Outputs(Callback):
    """The network before and after the pruning's turn at the first epoch start."""

    def __init__(self):
        self.networks = []

    @property
    def state_key(self):
        return str(id(self))

    def on_train_epoch_start(self, trainer, pl_module):
        self.networks.append(copy.deepcopy(pl_module.net).eval())


def steps(make_trainer, model, loaders, **options):
    """One step without training; what the network was and what it is."""
    before, after = Outputs(), Outputs()
    pruning = HQPPruning("val_acc", 0.02, step=0.2, **options)
    make_trainer(1, [before, pruning, after]).fit(model, *loaders)
    (record,) = pruning.records
    assert record.outcome == "kept"
    return before.networks[0], after.networks[0], record


def folded(model):
    """BatchNorm's work done by the convolutions: an identity is left in its place."""
    torch.manual_seed(0)
    model.net[0].stride = (1, 1)  # at a quarter of the positions all errors are rounding's
    for conv in (0, 3):
        model.net[conv].weight.data.mul_(3)
    return model


def error(old, new, x):
    with torch.no_grad():
        return float((old(x) - new(x)).square().mean())


def test_a_network_with_folded_batchnorm_is_not_ruined(small_loaders, make_trainer, digits):
    without = error(
        *steps(make_trainer, folded(Scripted([0.9])), small_loaders, recalibrate_batches=0)[:2], digits[0][1400:]
    )
    old, new, record = steps(make_trainer, folded(Scripted([0.9])), small_loaders)
    assert error(old, new, digits[0][1400:]) < without
    assert record.batchnorm == "corrected by what the cut changed, on 5 batches"
    logits = [n(digits[0][1400:]).detach() for n in (old, new)]
    assert float((logits[1] - logits[0]).square().mean() / logits[0].var()) < 0.1


def test_frozen_batchnorm_stays_frozen(small_loaders, make_trainer):
    class Frozen(Scripted):
        def on_train_start(self):
            for norm in (self.net[1], self.net[4]) if self.both else (self.net[1],):
                norm.eval()

    for both, said in ((True, "left alone: frozen"), (False, "on 5 batches; 1 of 2 layers are frozen and stay")):
        model = Frozen([0.9])
        model.both = both
        old, new, record = steps(make_trainer, model, small_loaders)
        assert record.batchnorm.endswith(said)
        assert set(new[1].running_var.tolist()) == {1.0}
        assert (set(new[4].running_var.tolist()) == {1.0}) == both


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_an_image_that_training_skips_does_not_enter(loaders, make_trainer):
    class Skips(Scripted):
        def training_step(self, batch, batch_idx):
            return None if batch[0].isnan().any() else super().training_step(batch, batch_idx)

    x, y = (t.clone() for t in loaders[0].dataset.tensors)
    x[70, 0, 3, 3] = torch.nan
    old, new, record = steps(make_trainer, Skips([0.9]), (DataLoader(TensorDataset(x, y), 64), loaders[1]))
    assert record.batchnorm == "corrected by what the cut changed, on 4 batches"
    assert all(t.isfinite().all() for t in new.state_dict().values())


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
@pytest.mark.parametrize("size", [8, 1])
def test_a_batch_of_one_sample_in_front_of_batchnorm1d(make_trainer, digits, size):
    x, y = digits
    model = Scripted([0.9])
    model.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32))
    model.net.extend([nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)])
    model.training_step = lambda *_: None
    train, val = (DataLoader(TensorDataset(x[i : i + 17], y[i : i + 17]), size) for i in (0, 1200))
    *_, record = steps(make_trainer, model, (train, val), recalibrate_batches=17)
    assert record.batchnorm.startswith("corrected")
