"""A large step is made in parts, each by scores of what the one before has left; it is one step all the same."""

import copy
from types import SimpleNamespace

import pytest
import torch
from classifier import Classifier, Scripted, cut_by_hand
from gated import ALL, GatedScripted
from lightning.pytorch import Callback
from probes import Probe, assert_same
from test_ddp import assert_equal_ranks, batched, run
from torch import nn

from hqp_lightning import HQPPruning
from hqp_lightning.errors import SurgeryError
from hqp_lightning.report import step_line
from hqp_lightning.search import cutting, rescoring, substeps
from hqp_lightning.search.saving import ends_in_macs


@pytest.fixture
def loaders(small_loaders):
    """Nothing need be learnt here."""
    return small_loaders


@pytest.fixture
def scored(monkeypatch):
    """Copies of the networks that were scored within a step, and the scores."""
    seen = []
    original = substeps.rescored

    def watch(trainer, pl_module, network, *rest):
        seen.append((copy.deepcopy(network), original(trainer, pl_module, network, *rest)))
        return seen[-1][1]

    monkeypatch.setattr(substeps, "rescored", watch)
    return seen


class After(Callback):
    """What a step has left, and what it says that it removed."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.tensors = {n: t.clone() for n, t in pl_module.state_dict().items()}
        self.removed = trainer.callbacks[1].state.rejected[-1]


def fisher_by_hand(network, place, x, y):
    """Mean squared derivative by a gate on the channels that the module at ``place`` receives."""
    network = network.eval().requires_grad_(False)
    received = network[:place](x)
    z = torch.ones(*received.shape[:2], 1, 1, requires_grad=True)
    loss = nn.functional.cross_entropy(network[place:](received * z), y, reduction="sum")
    return torch.autograd.grad(loss, z)[0].flatten(1).square().mean(0)


def test_each_part_goes_by_the_scores_of_what_is_left(loaders, make_trainer, scored):
    """They are those of autograd; what all parts removed is told in the numbering of before, and can be cut so."""
    before, after = Probe(0), After()
    pruning = HQPPruning("val_acc", 0.9, step=0.6, compensate=False, recalibrate_batches=0)
    torch.manual_seed(0)
    make_trainer(1, [before, pruning, after]).fit(Classifier(), *loaders)
    (made,) = pruning.records
    assert made.substeps == 3 == len(scored) + 1
    assert "in 3 parts" in step_line(made)
    x, y = loaders[1].dataset.tensors
    for network, scores in scored:
        for group, place in {"0": 3, "3": 7, "7": 9}.items():
            torch.testing.assert_close(scores[group], fisher_by_hand(network, place, x, y), rtol=1e-3, atol=1e-8)
    dense = dict(before.seen[0]["tensors"])
    cut_by_hand(dense, after.removed)
    assert made.channels_removed == sum(map(len, after.removed.values()))
    assert all(torch.equal(t, dense[n]) for n, t in after.tensors.items() if n in dense)
    assert 0.3 < made.macs / pruning.state.dense_macs < 0.45


def test_a_step_of_just_what_is_missing_ends_at_the_target():
    options = SimpleNamespace(target_macs=0.3)
    for macs in range(1000, 2000):
        state = SimpleNamespace(price=None, dense_macs=macs, search=SimpleNamespace(step=0.7))
        assert ends_in_macs(SimpleNamespace(macs=macs), state, options)
        state.search.step = 0.69
        assert not ends_in_macs(SimpleNamespace(macs=macs), state, options)


@pytest.mark.parametrize("target", [0.3, 0.4, 0.55])
def test_a_step_that_is_to_reach_the_target_reaches_it(target, loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.9, step=0.8, target_macs=target, round_to=1, compensate=False)
    torch.manual_seed(0)
    make_trainer(1, [pruning]).fit(Classifier(), *loaders)
    (made,) = pruning.records
    assert 0.6 * target < made.macs / pruning.state.dense_macs <= target


def test_a_rollback_takes_all_parts_back_bit_for_bit(loaders, make_trainer):
    before, cut, after = Probe(1), Probe(1), Probe(2)
    search = HQPPruning("val_acc", 0.02, step=0.6, min_step=0.6, start_epoch=1, round_to=4, units=["channels", "gates"])
    make_trainer(3, [before, search, cut, after]).fit(GatedScripted([0.9, 0.5]), *loaders)
    assert [(r.outcome, r.substeps > 1) for r in search.records] == [("rolled_back", True)]
    assert cut.seen[1]["structure"] != before.seen[1]["structure"]
    assert_same(before.seen[1], after.seen[2])


@pytest.mark.parametrize(("owner", "name"), [(cutting, "slice_optimizers_"), (substeps, "rescored")])
def test_a_later_part_that_fails_takes_the_earlier_ones_back(loaders, make_trainer, monkeypatch, owner, name):
    original, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise SurgeryError("injected") if owner is substeps else MemoryError("injected")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    model, before, after = Scripted([0.9]), Probe(1), Probe(1)
    after.epochs = (1, None)  # a key of its own
    pruning = HQPPruning("val_acc", 0.02, step=0.6, min_step=0.6, start_epoch=1)
    make_trainer(2, [before, pruning, after]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["refused"]
    assert "injected" in pruning.records[0].reason
    assert_same(before.seen[1], after.seen[1])


def test_blocks_that_cannot_be_tried_refuse_the_step(loaders, make_trainer, monkeypatch):
    """Before anything was cut: one clear line, and the search goes on with half the step."""
    tried, calls = rescoring.loss_rises, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("injected")
        return tried(*args)

    monkeypatch.setattr(rescoring, "loss_rises", failing)
    pruning = HQPPruning("val_acc", 0.02, step=0.6, min_step=0.3, start_epoch=1, units=["branches"], compensate=False)
    make_trainer(2, [pruning]).fit(GatedScripted([0.9]), *loaders)
    assert [r.outcome for r in pruning.records] == ["refused", "kept"]
    assert pruning.records[0].reason == "the scores within a step failed: RuntimeError: injected"
    assert (pruning.records[0].macs, pruning.records[0].channels_removed) == (pruning.state.dense_macs, 0)
    assert len(calls) > 1


def test_two_processes_make_the_parts_of_one(digits, make_trainer, tmp_path):
    """With gates, whose means in a validation are those of all batches of all ranks."""

    def once(folder, loaders, **kwargs):
        torch.manual_seed(0)
        model = GatedScripted([0.9, 0.5], optimizer="sgd")
        options = {"units": ALL, "step": 0.5, "round_to": 4, "compensate": False}
        search = HQPPruning("val_acc", 0.02, min_step=0.5, recalibrate_batches=0, **options)
        return run(make_trainer, tmp_path / folder, model, loaders, search, epochs=1, **kwargs)

    ranks = once("two", batched(digits, 16), in_order=True)
    (single,) = once("one", batched(digits, 32, padded=1), distributed=False)
    assert_equal_ranks(ranks)
    assert ranks[0]["removed"] == single["removed"] != []
    assert ranks[0]["predicted"] == pytest.approx(single["predicted"], rel=1e-4)
    assert any(name.startswith("gate:") for name in ranks[0]["saliency"])
    for name, value in ranks[0]["saliency"].items():
        torch.testing.assert_close(value, single["saliency"][name], rtol=1e-4, atol=1e-9)
