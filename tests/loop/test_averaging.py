"""Beside EMAWeightAveraging: the averaged copy is cut, restored, judged and saved with the network."""

import copy

import pytest
import torch
from classifier import Classifier, Scripted, cut_by_hand
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from hqp_lightning import HQPPruning, load_pruned
from hqp_lightning.surgery import recalibrate_batchnorm_

DECAY = 0.9


class ByHand(Callback):
    """The average by its formula, cut and restored by hand; stands last in the list and compares at every batch."""

    def __init__(self):
        self.average, self.before, self.steps, self.compared = None, None, 0, []

    def on_train_epoch_start(self, trainer, pl_module):
        state = next(c for c in trainer.callbacks if isinstance(c, HQPPruning)).state
        if state.records and state.records[-1].outcome == "rolled_back":
            self.average, self.steps = self.before
        if state.pending is not None:
            self.before = dict(self.average) if self.average else None, self.steps
            if self.average:
                cut_by_hand(self.average, state.rejected[-1])

    def on_train_batch_end(self, trainer, pl_module, *_):
        now = {n: t.detach().clone() for n, t in pl_module.state_dict().items()}
        if self.steps == 0:
            self.average = now
        else:
            for name, value in now.items():
                old = self.average[name]
                new = DECAY * old + (1 - DECAY) * value
                self.average[name] = new.to(old.dtype) if old.is_floating_point() else new.long()
        self.steps += 1
        kept = trainer.callbacks[0]._average_model
        assert int(kept.n_averaged) == self.steps
        for name, value in kept.module.state_dict().items():
            torch.testing.assert_close(value, self.average[name], msg=lambda m, n=name: f"{n}: {m}")
        self.compared.append(sum(t.numel() for t in self.average.values()))


def test_the_average_is_that_of_the_formula_through_prune_and_rollback(loaders, make_trainer):
    pruning = HQPPruning(
        "val_acc", 0.02, step=0.2, min_step=0.05, start_epoch=1, recalibrate_batches=0, compensate=False
    )
    hand = ByHand()
    model = Scripted([0.9, 0.9, 0.89, 0.5, 0.885])
    trainer = make_trainer(4, [EMAWeightAveraging(decay=DECAY), pruning, hand])
    trainer.fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "rolled_back", "kept"]
    sizes = hand.compared[::5]
    assert sizes[0] > sizes[1] > sizes[3] > sizes[2]
    # What is left is the average that the last validation scored.
    for name, value in trainer.callbacks[0]._average_model.module.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
        torch.testing.assert_close(hand.average[name], value)


def in_both_orders():
    return [pytest.param(False, id="average_first"), pytest.param(True, id="average_last")]


@pytest.mark.parametrize("last", in_both_orders())
def test_the_model_that_remains_is_the_one_that_was_scored(loaders, make_trainer, digits, last):
    pruning, average = HQPPruning("val_acc", 0.1, step=0.2, start_epoch=4), EMAWeightAveraging(decay=0.5)
    model = Classifier()
    make_trainer(7, [pruning, average] if last else [average, pruning]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records].count("kept") > 0
    x, y = digits
    with torch.no_grad():
        accuracy = (model.eval().net(x[1200:1400]).argmax(1) == y[1200:1400]).double().mean()
    assert float(accuracy) == pytest.approx(pruning.state.accepted[-1].score, abs=1e-6)


@pytest.mark.parametrize("last", in_both_orders())
def test_nothing_accepted_leaves_the_average_of_the_dense_model(loaders, make_trainer, last):
    pruning, average = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.2), EMAWeightAveraging(decay=0.5)
    model = Scripted([0.9, 0.1])
    make_trainer(1, [pruning, average] if last else [average, pruning]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["rolled_back"]
    assert model.net[0].out_channels == 32
    for name, value in average._average_model.module.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


class Watch(Callback):
    """The averaged copy at the start of some epochs."""

    def __init__(self, average, *epochs):
        self.average, self.epochs, self.seen = average, epochs, {}

    @property
    def state_key(self):
        return f"Watch{self.epochs}"

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch in self.epochs:
            self.seen[trainer.current_epoch] = copy.deepcopy(self.average._average_model.state_dict())


def test_a_rollback_restores_the_average_bit_for_bit(small_loaders, make_trainer):
    average = EMAWeightAveraging(decay=DECAY)
    before, after = Watch(average, 1, 2), Watch(average, 2, 3)
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.2)
    make_trainer(3, [average, before, pruning, after]).fit(Scripted([0.9, 0.89, 0.5]), *small_loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "rolled_back"]
    a, b = before.seen[1], after.seen[2]
    assert int(a["n_averaged"]) == 5
    assert list(a) == list(b)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert any(a[n].shape != before.seen[2][n].shape for n in a)


class Uncut(Callback):
    """The averaged copy before the pruning's turn, and what is then removed."""

    def __init__(self, average, pruning):
        self.average, self.pruning = average, pruning

    def on_train_epoch_start(self, trainer, pl_module):
        self.copy = copy.deepcopy(self.average._average_model.module)

    def on_train_batch_start(self, *_):
        self.removed = self.pruning.state.rejected[-1] if self.pruning.state.rejected else {}


def test_batchnorm_of_the_average_follows_the_cut_by_itself(loaders, make_trainer, digits):
    average = EMAWeightAveraging(decay=DECAY)
    pruning = HQPPruning("val_acc", 0.02, step=0.2, start_epoch=1, recalibrate_batches=3)
    uncut, watch = Uncut(average, pruning), Watch(average, 1)
    make_trainer(2, [average, uncut, pruning, watch]).fit(Scripted([0.9]), *loaders)
    twin = copy.deepcopy(average._average_model)
    twin.load_state_dict(watch.seen[1])
    kept = {
        f"{norm}.running_mean": torch.tensor([c for c in range(n) if c not in uncut.removed.get(group, ())])
        for norm, group, n in (("1", "0", 32), ("4", "3", 64))
    }
    old = uncut.copy.net
    for name, channels in kept.items():
        for buffer in (name, name.replace("mean", "var")):
            twin.module.net.get_buffer(buffer).copy_(old.get_buffer(buffer)[channels])
    data = [(digits[0][64 * i : 64 * i + 64],) for i in range(3)]
    recalibrate_batchnorm_(twin.module.net, old, kept, data, ["1", "4"])
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(value, watch.seen[1][name], rtol=0, atol=0)
    assert not torch.equal(twin.module.net[4].running_var, old[4].running_var[kept["4.running_mean"]])


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("last", in_both_orders())
def test_straight_and_resumed_runs_agree_exactly(small_loaders, make_trainer, tmp_path, last):
    def run(ckpt=None):
        torch.manual_seed(0)
        pruning, average = HQPPruning("val_acc", 0.2, step=0.2, min_step=0.05), EMAWeightAveraging(decay=DECAY)
        checkpoint = ModelCheckpoint(tmp_path / "a", "{epoch}", save_top_k=-1, enable_version_counter=False)
        callbacks = [pruning, average] if last else [average, pruning]
        model = Classifier()
        trainer = make_trainer(4, [*callbacks, checkpoint], enable_checkpointing=True)
        trainer.fit(model, *small_loaders, ckpt_path=ckpt, weights_only=True)
        return model, pruning

    straight, first = run()
    assert "kept" in [r.outcome for r in first.records]
    for epoch in (0, 2):
        resumed, second = run(tmp_path / "a" / f"epoch={epoch}.ckpt")
        for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(a, b), (epoch, name)
        assert [(r.outcome, r.accuracy) for r in second.records] == [(r.outcome, r.accuracy) for r in first.records]
    saved = torch.load(tmp_path / "a" / "epoch=2.ckpt", weights_only=True)
    loaded = load_pruned(Classifier, tmp_path / "a" / "epoch=2.ckpt")
    assert all(torch.equal(t, saved["state_dict"][n]) for n, t in loaded.state_dict().items())
    assert any(not torch.equal(t, saved["current_model_state"][n]) for n, t in loaded.state_dict().items())
