import copy
from functools import partial

import pytest
import torch
from classifier import Classifier, Scripted
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from test_ddp import batched, on_two_ranks
from torch import nn

from hqp_lightning import HQPPruning
from hqp_lightning.loop import batches
from hqp_lightning.search import cutting
from hqp_lightning.surgery import apply_cut_, compensation, record
from hqp_lightning.surgery.compensation import add_, collecting
from hqp_lightning.surgery.readers import readers


class Watch(Callback):
    """Before the pruning in the list: copies of what a step is made of, at the start of an epoch."""

    def __init__(self, monkeypatch, epoch=0):
        self.epoch, self.cut, self.before, self.after = epoch, None, [], []
        original = cutting.compensations

        def watched(trainer, pl_module, networks, cut, *rest):
            self.cut, self.before = cut, [copy.deepcopy(n) for n in networks]
            return original(trainer, pl_module, networks, cut, *rest)

        monkeypatch.setattr(cutting, "compensations", watched)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 0:
            averages = [c._average_model.module for c in trainer.callbacks if isinstance(c, EMAWeightAveraging)]
            self.after = [copy.deepcopy(m.net) for m in (pl_module, *averages)]


def by_hand(network, cut, x):
    """The compensated network, from the functions of the surgery alone."""
    twin = copy.deepcopy(network)
    with collecting(network, readers(network, cut)) as seen:
        for batch in x.split(16):
            seen.run((batch,))
    apply_cut_(twin, cut)
    add_(twin, seen.solve())
    return twin


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_live_network_and_its_average_are_each_compensated_by_what_they_compute(
    small_loaders, make_trainer, monkeypatch, precision
):
    average, watch = EMAWeightAveraging(decay=0.5), Watch(monkeypatch, epoch=1)
    pruning = HQPPruning("val_acc", 0.9, step=0.25, start_epoch=1, recalibrate_batches=0)
    make_trainer(2, [average, watch, pruning], precision=precision).fit(Scripted([0.9], lr=0.02), *small_loaders)
    x = small_loaders[0].dataset.tensors[0]
    assert len(watch.before) == len(watch.after) == 2
    for before, after in zip(watch.before, watch.after, strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            expected = by_hand(before, watch.cut, x[:256])
        for name, tensor in expected.state_dict().items():
            assert tensor.dtype == after.state_dict()[name].dtype
            torch.testing.assert_close(after.state_dict()[name], tensor, msg=lambda m, n=name: f"{n}: {m}")
    one, other = (dict(n.named_parameters())["3.weight"] for n in watch.after)
    assert not torch.equal(one, other)


def test_it_can_be_switched_off(small_loaders, make_trainer, monkeypatch):
    watch = Watch(monkeypatch)
    pruning = HQPPruning("val_acc", 0.9, step=0.25, recalibrate_batches=0, compensate=False)
    make_trainer(1, [watch, pruning]).fit(Scripted([0.9]), *small_loaders)
    (network,) = watch.before
    apply_cut_(network, watch.cut)
    assert all(torch.equal(t, watch.after[0].state_dict()[n]) for n, t in network.state_dict().items())


def test_few_images_are_enough_and_no_more_are_asked_for(loaders, make_trainer, monkeypatch):
    counted = []
    original = compensation.Seen.run
    monkeypatch.setattr(compensation.Seen, "run", lambda self, call: (counted.append(1), original(self, call)))
    monkeypatch.setattr(batches, "IMAGES", 100)
    make_trainer(1, [HQPPruning("val_acc", 0.9, step=0.2)]).fit(Classifier(), *loaders)
    assert len(counted) == 2  # of 64


class FailingOnOne(HQPPruning):
    """The regression fails on the second rank alone, which the others wait for."""

    def __init__(self, where, **kwargs):
        super().__init__("val_acc", 0.02, **kwargs)
        self.where = where

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.global_rank == 1:
            setattr(compensation.Seen, self.where, None)  # not callable
        super().on_train_epoch_start(trainer, pl_module)


def fails_on_one_rank(make_trainer, loaders, where):
    model, pruning = Scripted([0.9]), FailingOnOne(where, step=0.2, min_step=0.15)
    model.net = nn.Sequential(*model.net, nn.Linear(10, 10))
    dense = record(model)
    make_trainer(1, [pruning], strategy="ddp", devices=2).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["refused"]
    assert record(model) == dense


@pytest.mark.parametrize("where", ["run", "solve"])
@pytest.mark.filterwarnings("ignore")
def test_a_failure_on_one_rank_takes_the_step_back_on_all(digits, make_trainer, where):
    on_two_ranks(partial(fails_on_one_rank, make_trainer, batched(digits, 16), where))
