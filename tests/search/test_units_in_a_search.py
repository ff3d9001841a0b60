"""Gates and branches in a live search: steps, rollbacks, optimizers, averages, checkpoints, ranks, exports."""

import copy

import pytest
import torch
from classifier import accuracy_by_hand, macs_of
from gated import ALL, GatedClassifier, GatedScripted
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from probes import Probe, assert_same
from test_ddp import assert_equal_ranks, run
from torch import nn
from torch.nn.functional import mse_loss

from hqp_lightning import FisherAccumulator, HQPPruning, Int8Export, load_pruned
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.report import read_json
from hqp_lightning.search import cutting
from hqp_lightning.shipping.facts import units
from hqp_lightning.surgery import record


@pytest.fixture
def loaders(small_loaders):
    """Nothing need be learnt here."""
    return small_loaders


def pruning(**options):
    """One step from the second epoch on, unless told otherwise; of the gates alone the first is of one."""
    settings = {"units": ALL, "step": 0.45, "min_step": 0.45, "round_to": 4, "start_epoch": 1}
    return HQPPruning("val_acc", 0.02, **{**settings, **options})


class Held(Callback):
    """After every batch the optimizer holds what the module has, and state of nothing else."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        (optimizer,) = trainer.optimizers
        held = [p for g in optimizer.param_groups for p in g["params"]]
        assert [id(p) for p in held] == [id(p) for p in pl_module.parameters() if p.requires_grad]
        assert all(p in optimizer.state for p in held)
        assert len(optimizer.state) == len(held)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("units", [ALL, ("gates", "branches")])
def test_a_rollback_brings_units_back_bit_for_bit(loaders, make_trainer, optimizer, units):
    before, cut, after = Probe(1), Probe(1), Probe(2)
    search, average = pruning(units=units), EMAWeightAveraging(decay=0.5)
    model = GatedScripted([0.9, 0.5], optimizer=optimizer)
    own = [id(p) for p in model.parameters()]
    trainer = make_trainer(3, [average, before, Held(), search, cut, after])
    trainer.fit(model, *loaders)
    assert [r.outcome for r in search.records] == ["rolled_back"]
    removed = {f"net.{u.partition(':')[2]}" for u in search.records[0].units_removed}
    assert set(cut.seen[1]["structure"].replaced) == removed != set()
    assert_same(before.seen[1], after.seen[2])
    assert [id(p) for p in model.parameters()] == own
    assert [id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]] == own
    assert record(average._average_model.module) == record(model)


class Copied(Callback):
    """The network that a step is about to be chosen for, or has been; and the scores of an accumulator by then."""

    def __init__(self, fisher=None):
        self.fisher = fisher

    def on_train_epoch_start(self, trainer, pl_module):
        self.network = copy.deepcopy(pl_module.net)
        self.scores = self.fisher and self.fisher.saliency()


def test_branches_go_by_what_the_loss_rises_without_them(loaders, make_trainer):
    """By hand on the whole validation data, on the scale of half the Fisher values."""
    torch.manual_seed(0)
    before, search = Copied(), pruning(units=("branches",), step=0.01, min_step=0.01, compensate=False, start_epoch=5)
    after = Copied(search.own_fisher)
    make_trainer(6, [before, search, after]).fit(GatedScripted([0.9], lr=0.02), *loaders)
    made, (x, y) = search.records[0], loaders[1].dataset.tensors
    network, losses = before.network.eval().requires_grad_(False), []
    for gone in ("", "5", "6"):
        cut = nn.Sequential(*(nn.Identity() if str(i) == gone else m for i, m in enumerate(network)))
        losses.append(float(nn.functional.cross_entropy(cut(x), y)))
    rises = {f"branch:{n}": loss - losses[0] for n, loss in zip(("5", "6"), losses[1:], strict=True)}
    value = {n: 0.5 * float(search.state.dense_saliency[n]) for n in rises}
    scale = sum(rises[n] / value[n] for n in rises) / 2  # the median of two
    foretold = {n: rises[n] / scale for n in rises}
    assert made.units_removed == (min(foretold, key=foretold.__getitem__),)
    assert made.predicted_loss_increase == pytest.approx(foretold[made.units_removed[0]], rel=1e-4)
    assert made.losses == pytest.approx({n: foretold[n] for n in made.units_removed}, rel=1e-4)
    worth = units(search.state)
    assert [u.unit for u in worth] == list(rises)
    assert {u.unit: u.fisher for u in worth} == value
    assert {u.unit: u.rise for u in worth} == pytest.approx(rises, rel=1e-4)
    assert {u.unit: u.loss for u in worth} == pytest.approx(foretold, rel=1e-4)
    used = {n: 0.5 * float(after.scores[n]) for n in rises}
    assert used == pytest.approx(foretold, rel=1e-4)  # what the accumulator has now
    assert made.predicted_loss_increase != pytest.approx(value[made.units_removed[0]], rel=0.01)


def test_averaged_copies_lose_the_same_units_by_means_of_their_own(loaders, make_trainer, monkeypatch):
    seen = []
    original = cutting.apply_cut_
    monkeypatch.setattr(
        cutting, "apply_cut_", lambda network, cut: (seen.append(copy.deepcopy(network)), original(network, cut))
    )
    search = pruning(units=("gates",), step=0.001, min_step=0.001, ignore=("5", "6"))
    average = EMAWeightAveraging(decay=0.9)
    make_trainer(2, [average, search]).fit(GatedScripted([0.9], lr=0.02), *loaders)
    assert search.records[0].units_removed == ("gate:3",)
    live, copied = (n.get_submodule("3").weight for n in seen)
    assert live.shape == copied.shape == (16, 1, 1)
    assert not torch.equal(live, copied)
    assert record(average._average_model.module).replaced == {"net.3": "scale"}


@pytest.mark.parametrize("compensate", [True, False])
def test_what_reads_a_branch_takes_over_what_it_did_in_averages_too(loaders, make_trainer, monkeypatch, compensate):
    seen = []
    original, taken = cutting.remove_units_, cutting.apply_cut_

    def removed(trainer, pl_module, networks, *rest):
        seen.append([copy.deepcopy(n).eval() for n in networks])
        original(trainer, pl_module, networks, *rest)
        seen.append([copy.deepcopy(n).eval() for n in networks])

    monkeypatch.setattr(cutting, "remove_units_", removed)
    monkeypatch.setattr(
        cutting, "apply_cut_", lambda network, cut: (seen.append(copy.deepcopy(network)), taken(network, cut))
    )
    search = pruning(units=("branches",), step=0.2, min_step=0.2, compensate=compensate)
    make_trainer(2, [EMAWeightAveraging(decay=0.9), search]).fit(GatedScripted([0.9], lr=0.02), *loaders)
    assert search.records[0].units_removed
    x = loaders[0].dataset.tensors[0][:128]
    dense, plain, left = *seen[:2], seen[2:]
    assert len(dense) == len(plain) == len(left) == 2
    for was, without, now in zip(dense, plain, left, strict=True):
        with torch.no_grad():
            wanted = was(x)
            ratio = mse_loss(now.eval()(x), wanted) / mse_loss(without(x), wanted)
        assert ratio < 0.6 if compensate else ratio == 1


class GatedByEpoch(GatedScripted):
    """Scores that go by the epoch, so that a resumed run gets the same."""

    def on_validation_epoch_start(self):
        self.current = 0.1 if self.current_epoch == 2 and self.trainer.global_step else 0.9


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_straight_and_resumed_runs_agree_exactly_and_files_load(loaders, make_trainer, tmp_path):
    def fit(folder, ckpt=None):
        torch.manual_seed(0)
        search = HQPPruning("val_acc", 0.2, step=0.3, min_step=0.1, round_to=4, units=ALL, start_epoch=1)
        checkpoint = ModelCheckpoint(tmp_path / folder, "{epoch}", save_top_k=-1, enable_version_counter=False)
        model = GatedByEpoch([0.9])
        trainer = make_trainer(5, [search, checkpoint], enable_checkpointing=True)
        trainer.fit(model, *loaders, ckpt_path=ckpt, weights_only=True)
        return model, search, trainer

    straight, first, trainer = fit("a")
    outcomes = [(r.outcome, bool(r.units_removed)) for r in first.records]
    assert ("kept", True) in outcomes
    assert "rolled_back" in {r.outcome for r in first.records}
    assert record(straight).replaced
    for epoch in (1, 3):
        torch.manual_seed(5)
        resumed, second, _ = fit(f"b{epoch}", tmp_path / "a" / f"epoch={epoch}.ckpt")
        assert [r.units_removed for r in second.records] == [r.units_removed for r in first.records]
        assert record(resumed) == record(straight)
        for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(a, b), (epoch, name)
    trainer.save_checkpoint(tmp_path / "pruned.ckpt", weights_only=True)
    loaded, x = load_pruned(GatedByEpoch, tmp_path / "pruned.ckpt", scores=[0.9]), torch.rand(4, 1, 8, 8)
    assert torch.equal(loaded.eval().net(x), straight.eval().net(x))


@pytest.mark.slow
def test_two_ranks_remove_the_same_units_by_the_same_means(loaders, make_trainer, tmp_path):
    search = pruning(units=("gates",), step=0.001, min_step=0.001, ignore=("5", "6"), start_epoch=0)
    ranks = run(make_trainer, tmp_path / "two", GatedScripted([0.9]), loaders, search, epochs=1)
    assert ranks[0]["structure"]["replaced"] == {"net.3": "scale"}
    assert_equal_ranks(ranks)


def test_the_export_is_of_what_is_left_and_the_report_names_it(loaders, make_trainer, tmp_path):
    torch.manual_seed(0)
    search = HQPPruning("val_acc", 0.9, step=0.3, units=ALL, round_to=4)
    export = Int8Export(tmp_path, engines=["onnxruntime"], rtx=(), threads=1, latency_runs=1, calibration_batches=2)
    make_trainer(2, [search, export]).fit(GatedClassifier(), *loaders)
    removed = [u for r in export.report.steps for u in r.units_removed]
    assert removed
    assert set(export.report.units_removed) <= set(removed)
    assert read_json(tmp_path / "report.json") == export.report
    assert {u.unit for u in export.report.units} >= set(removed)
    for step in export.report.steps:
        assert sum(step.losses.values()) == pytest.approx(step.predicted_loss_increase, rel=1e-4)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "removed as a whole: " in page
    gone = [c.layer for c in export.report.channels if c.after == 0]
    assert any(n.startswith(u.partition(":")[2]) for n in gone for u in removed)
    assert export.report.int8.macs == macs_of(tmp_path / "model.onnx")
    by_hand = accuracy_by_hand(tmp_path / "model.int8.onnx", *loaders[1].dataset.tensors)
    assert export.report.int8.accuracy == pytest.approx(by_hand)
    loaded = load_pruned(GatedClassifier, tmp_path / "pruned.ckpt")
    assert sum(p.numel() for p in loaded.net.parameters()) == export.report.pruned.params


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": ("blocks",)}, r"units=\['blocks'\] must be some of \['channels', 'gates', 'branches'\]"),
        ({"units": ()}, r"units=\[\] must be some of"),
        ({"units": "gates"}, "units='gates' must be a list"),
        ({"units": None}, "units=None must be a list"),
        ({"units": ALL, "estimator": "weight"}, "'weight' has no value of"),
    ],
)
def test_units_are_checked_at_the_door(options, words):
    with pytest.raises(ConfigurationError, match=words):
        HQPPruning("val_acc", 0.1, **options)


def test_a_shared_accumulator_must_measure_the_units(loaders, make_trainer):
    trainer = make_trainer(1, [FisherAccumulator(), pruning()])
    with pytest.raises(ConfigurationError, match=r"needs the values of \['gates', 'branches'\]"):
        trainer.fit(GatedScripted([0.9]), *loaders)
