"""A step happens as a whole or not at all: errors, interrupts and kills in the middle of it, and every kind of file."""

import os
from functools import partial

import pytest
import torch
from classifier import Classifier, Scripted
from fsspec.implementations.local import LocalFileOpener
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from probes import Probe, assert_same, channels
from processes import exit_codes

from hqp_lightning import HQPPruning, load_pruned
from hqp_lightning.search import batchnorm as search_batchnorm
from hqp_lightning.search import cutting, operation, proposal
from hqp_lightning.surgery import Shadow, batchnorm, compensation, cut, record, snapshot


@pytest.fixture
def loaders(small_loaders):
    """Nothing need be learnt here."""
    return small_loaders


def failing(error, after, original):
    """``original``, but its call number ``after`` raises; what it did before stays done."""
    calls = 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == after:
            raise error
        return original(*args, **kwargs)

    return wrapper


# Where a step can fail: (owner, name of the function, which of its calls).
STAGES = {
    "planning": (Shadow, "cut", 1),
    "snapshot": (snapshot, "_optimizer_state", 1),
    "compensation": (compensation.Seen, "solve", 1),
    "after_some_readers_gained": (compensation, "best", 2),
    "gaining": (cutting, "add_", 1),
    "first_tensor": (cut, "replace_data_", 1),
    "middle_of_the_network": (cut, "replace_data_", 9),
    "between": (cutting, "slice_optimizers_", 1),
    "recalibration": (search_batchnorm, "recalibrate_batchnorm_", 1),
    "middle_of_recalibration": (batchnorm, "carried", 12),
}


class Identity(Callback):
    """The ids of the parameters of the optimizer and of the module."""

    def on_train_start(self, trainer, pl_module):
        self.ids = [id(p) for p in pl_module.parameters()]

    def on_train_end(self, trainer, pl_module):
        held = [id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]]
        assert held == self.ids == [id(p) for p in pl_module.parameters()]


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_fails_anywhere_leaves_everything_bit_for_bit(loaders, make_trainer, monkeypatch, stage):
    owner, name, call = STAGES[stage]
    model, average = Scripted([0.9, 0.89]), EMAWeightAveraging(decay=0.9)
    pruning = HQPPruning("val_acc", 0.02, step=0.3, min_step=0.3)
    before, after = Probe(1), Probe(1, 2)
    averaged = []

    class Inject(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                monkeypatch.setattr(owner, name, failing(MemoryError("injected"), call, getattr(owner, name)))
                averaged.append({n: t.clone() for n, t in average._average_model.state_dict().items()})

    class Compare(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                averaged.append({n: t.clone() for n, t in average._average_model.state_dict().items()})

    trainer = make_trainer(2, [average, before, Inject(), pruning, after, Compare(), Identity()])
    if stage in ("planning", "snapshot"):  # nothing was changed yet, and want of memory is not the network's fault
        with pytest.raises(MemoryError, match="injected"):
            trainer.fit(model, *loaders)
        assert pruning.state.pending is None
        assert record(model) == before.seen[1]["structure"]
        return
    trainer.fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "refused"]
    assert "injected" in pruning.records[1].reason
    assert_same(before.seen[1], after.seen[1])
    assert before.seen[1]["optimizer"]["state"]
    assert all(torch.equal(t, averaged[1][n]) for n, t in averaged[0].items())


class Interrupted(BaseException):
    """As a KeyboardInterrupt, which Lightning and pytest would both answer."""


@pytest.mark.parametrize("stage", ["planning", "middle_of_the_network", "recalibration"])
def test_an_interrupted_step_leaves_nothing_pending(loaders, make_trainer, monkeypatch, stage):
    owner, name, call = STAGES[stage]
    monkeypatch.setattr(owner, name, failing(Interrupted(), min(call, 9), getattr(owner, name)))
    model, pruning = Scripted([0.9]), HQPPruning("val_acc", 0.02, step=0.3)
    dense = record(model)
    with pytest.raises(Interrupted):
        make_trainer(2, [pruning]).fit(model, *loaders)
    assert record(model) == dense
    assert pruning.state.pending is None
    assert pruning.state.undo is None
    assert pruning.state.rejected == []


def dies(original, after):
    """``original``, but its call number ``after`` ends the process as a power cut would."""
    calls = 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == after:
            os._exit(9)
        return original(*args, **kwargs)

    return wrapper


def half_written(original, after):
    calls = 0

    def write(self, data):
        nonlocal calls
        calls += 1
        if calls == after:
            original(self, data[: len(data) // 2])
            self.f.flush()
            os._exit(9)
        return original(self, data)

    return write


# prune, roll back, prune, each in two parts: the third epoch start undoes the second step and makes the third.
DEATHS = {
    "while_cutting": lambda: setattr(cut, "replace_data_", dies(cut.replace_data_, 30)),
    "between_network_and_optimizer": lambda: setattr(cutting, "slice_optimizers_", dies(cutting.slice_optimizers_, 4)),
    "while_rolling_back": lambda: setattr(operation, "restore_", dies(operation.restore_, 1)),
    "after_rolling_back": lambda: setattr(proposal, "proposed", dies(proposal.proposed, 5)),
    "while_writing": lambda: setattr(LocalFileOpener, "write", half_written(LocalFileOpener.write, 4)),
}


UNHARMED = []


def checkpointed(make_trainer, folder, loaders, scores, ckpt=None, death=None):
    """Four epochs; ``death`` in the middle of them is what a process of its own dies of."""
    if death:
        DEATHS[death]()
    torch.manual_seed(0)
    pruning = HQPPruning("val_acc", 0.02, step=0.3, min_step=0.1)
    checkpoint = ModelCheckpoint(folder, save_last=True, save_top_k=1, enable_version_counter=False)
    model = Scripted(scores)
    trainer = make_trainer(4, [pruning, checkpoint], enable_checkpointing=True)
    trainer.fit(model, *loaders, ckpt_path=ckpt, weights_only=True)
    return model, pruning


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("death", DEATHS)
def test_a_killed_run_goes_on_from_its_last_checkpoint(loaders, make_trainer, tmp_path, death):
    scores = [0.9, 0.89, 0.5, 0.885, 0.88]
    if not UNHARMED:  # the same for all
        UNHARMED.append(checkpointed(make_trainer, tmp_path / "straight", loaders, scores))
    ((straight, first),) = UNHARMED
    assert [r.outcome for r in first.records] == ["kept", "rolled_back", "kept", "kept"]
    killed = tmp_path / "killed"
    assert exit_codes(partial(checkpointed, make_trainer, killed, loaders, scores, death=death)) == [9]
    last = killed / "last.ckpt"
    epochs = torch.load(last, weights_only=True)["epoch"] + 1
    resumed, second = checkpointed(make_trainer, killed, loaders, scores[epochs + 1 :], ckpt=last)
    assert [(r.outcome, r.macs, r.accuracy) for r in second.records] == [
        (r.outcome, r.macs, r.accuracy) for r in first.records
    ]
    assert record(resumed) == record(straight)
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture
def files(loaders, make_trainer, tmp_path):
    """A run that prunes twice, and its files: full ones of every epoch, weights only, and the last one."""
    torch.manual_seed(0)
    options = {"save_top_k": -1, "enable_version_counter": False}
    full = ModelCheckpoint(tmp_path / "full", "{epoch}", monitor="val_acc", mode="max", save_last=True, **options)
    light = ModelCheckpoint(tmp_path / "light", "{epoch}", save_weights_only=True, monitor="epoch", **options)
    pruning = HQPPruning("val_acc", 0.9, step=0.3, start_epoch=1)
    model = Classifier()
    trainer = make_trainer(3, [pruning, full, light], enable_checkpointing=True)
    trainer.fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "kept"]
    return trainer, model, pruning


def test_every_file_of_a_run_loads_with_its_own_structure(files, loaders, tmp_path):
    trainer, model, pruning = files
    sizes = [sum(p.numel() for p in Classifier().net.parameters()), *(r.params for r in pruning.records)]
    for folder, names in {
        "full": ["epoch=0", "epoch=1", "epoch=2"],
        "light": ["epoch=0", "epoch=1", "epoch=2"],
    }.items():
        for size, name in zip(sizes, names, strict=True):
            loaded = load_pruned(Classifier, tmp_path / folder / f"{name}.ckpt")
            assert sum(p.numel() for p in loaded.net.parameters()) == size
    last = load_pruned(Classifier, tmp_path / "full" / "last.ckpt")
    assert channels(last) == channels(model)
    assert "optimizer_states" not in torch.load(tmp_path / "light" / "epoch=2.ckpt", weights_only=True)


def test_an_unpruned_checkpoint_grows_a_pruned_live_module_back(files, loaders, make_trainer, tmp_path):
    trainer, model, pruning = files
    scores = pruning.state.dense.score, pruning.records[-1].accuracy  # a loaded file brings its own state along
    assert channels(model) != [32, 64, 64]
    (dense,) = trainer.validate(model, loaders[1], ckpt_path=tmp_path / "full" / "epoch=0.ckpt", verbose=False)
    assert channels(model) == [32, 64, 64]
    assert dense["val_acc"] == pytest.approx(scores[0], abs=1e-6)
    fresh = Classifier()
    fresh.load_state_dict(torch.load(tmp_path / "full" / "epoch=0.ckpt", weights_only=True)["state_dict"])
    x = loaders[1].dataset.tensors[0]
    assert torch.equal(model.eval().net(x), fresh.eval().net(x))
    (pruned,) = trainer.validate(model, loaders[1], ckpt_path=tmp_path / "light" / "epoch=2.ckpt", verbose=False)
    assert pruned["val_acc"] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*with multiple `ModelCheckpoint` callbacks")
def test_the_best_checkpoint_is_loaded_again_after_fit(files, loaders):
    trainer, model, pruning = files
    best = trainer.checkpoint_callback
    (result,) = trainer.validate(model, loaders[1], ckpt_path="best", verbose=False)
    assert result["val_acc"] == pytest.approx(float(best.best_model_score), abs=1e-6)
