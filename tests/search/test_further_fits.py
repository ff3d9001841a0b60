"""A search goes on over several fits: with the same callback, or from a file saved after the end of one."""

import copy
import pickle

import pytest
from classifier import Classifier, Scripted

from hqp_lightning import HQPPruning, Int8Export
from hqp_lightning.search.state import PruningState
from hqp_lightning.surgery import record


def pruning(**options):
    return HQPPruning("val_acc", 0.02, **{"step": 0.2, "min_step": 0.05, **options})


def outcomes(callback):
    return [r.outcome for r in callback.records]


def test_a_second_fit_goes_on_from_the_last_accepted_model(small_loaders, make_trainer, capsys):
    callback, model = pruning(), Scripted([0.9, 0.89, 0.885, 0.88])
    make_trainer(2, [callback]).fit(model, *small_loaders)
    assert callback.state.search.stopped == "fit ended"
    before, macs = record(model), callback.records[-1].macs
    seen = []
    model.on_train_start = lambda: seen.append(record(model))
    make_trainer(1, [callback]).fit(model, *small_loaders)
    assert outcomes(callback) == ["kept"] * 3
    assert seen == [before]
    assert callback.records[2].index == 3
    assert callback.records[2].macs < macs
    assert callback.records[2].accuracy_drop == pytest.approx(0.02)  # still from the dense model's 0.9
    assert "hqp: the search goes on from step 2, " in capsys.readouterr().out


def test_the_same_trainer_with_more_epochs(small_loaders, make_trainer):
    callback, model = pruning(), Scripted([0.9, 0.89, 0.5, 0.885])
    trainer = make_trainer(2, [callback])
    trainer.fit(model, *small_loaders)
    assert outcomes(callback) == ["kept", "rolled_back"]
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, *small_loaders)
    assert outcomes(callback) == ["kept", "rolled_back", "kept"]
    assert [r.step for r in callback.records] == [0.2, 0.2, 0.1]


def test_a_file_saved_after_fit(small_loaders, make_trainer, tmp_path):
    callback, model = pruning(), Scripted([0.9, 0.89, 0.5])
    trainer = make_trainer(2, [callback])
    trainer.fit(model, *small_loaders)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    fresh, again = Scripted([0.885]), pruning()
    make_trainer(4, [again]).fit(fresh, *small_loaders, ckpt_path=tmp_path / "after.ckpt", weights_only=True)
    assert outcomes(again) == ["kept", "rolled_back", "kept", "kept"]
    assert sum(p.numel() for p in fresh.net.parameters()) == again.records[-1].params < callback.records[0].params


def test_after_a_walk_back_the_search_goes_on_where_it_was(small_loaders, make_trainer, tmp_path):
    callback, model = pruning(max_snapshots=3), Scripted([0.9, 0.89, 0.885], int8=[0.5, 0.9])
    settings = {"engines": ["onnxruntime"], "latency_runs": 1, "calibration_batches": 1, "threads": 1}
    export = Int8Export(tmp_path, max_float_layers=0, **settings)
    trainer = make_trainer(2, [callback, export])
    trainer.fit(model, *small_loaders)
    shipped = sum(p.numel() for p in model.net.parameters())
    assert shipped == callback.records[0].params  # step 2's INT8 form was over budget
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    again = pruning()
    fresh = Scripted([0.88])
    make_trainer(3, [again]).fit(fresh, *small_loaders, ckpt_path=tmp_path / "after.ckpt", weights_only=True)
    assert outcomes(again) == ["kept"] * 3
    model.scores = [0.88]
    make_trainer(1, [callback]).fit(model, *small_loaders)
    assert outcomes(callback) == ["kept"] * 3
    assert callback.records[2].macs == again.records[2].macs < callback.records[1].macs


@pytest.mark.parametrize(
    ("options", "scores", "reason"),
    [
        ({"min_step": 0.2}, [0.9, 0.5], "the step fell below min_step=0.2"),
        ({"target_macs": 0.8}, [0.9], "target_macs=0.8 reached"),
    ],
)
def test_what_ended_for_good_stays_and_is_said(small_loaders, make_trainer, capsys, options, scores, reason):
    callback, model = pruning(**options), Scripted(scores)
    make_trainer(3, [callback]).fit(model, *small_loaders)
    assert callback.state.search.ended == reason
    made = len(callback.records)
    capsys.readouterr()
    make_trainer(2, [callback]).fit(model, *small_loaders)
    assert len(callback.records) == made
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("hqp: the search is over")]
    assert said == [f"hqp: the search is over ({reason}); this fit trains the last accepted model"]


def test_no_epochs_left_is_not_the_end(small_loaders, make_trainer):
    callback, model = pruning(every_n_epochs=2), Scripted([0.9])
    make_trainer(3, [callback]).fit(model, *small_loaders)
    assert callback.state.search.paused == "no epochs are left to heal and judge another step"
    make_trainer(2, [callback]).fit(model, *small_loaders)
    assert outcomes(callback) == ["kept", "kept"]


def test_another_module_begins_a_search_of_its_own(small_loaders, make_trainer):
    callback = pruning()
    make_trainer(1, [callback]).fit(Scripted([0.9, 0.89]), *small_loaders)
    make_trainer(1, [callback]).fit(Scripted([0.6, 0.59]), *small_loaders)
    assert [(r.index, r.outcome, r.accuracy_drop) for r in callback.records] == [(1, "kept", pytest.approx(0.01))]
    assert callback.state.reference == pytest.approx(0.6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_a_copy_of_the_callback_goes_on_with_a_copy_of_the_module_alone(small_loaders, make_trainer, copied):
    callback, model = pruning(), Scripted([0.9, 0.89, 0.885])
    make_trainer(1, [callback]).fit(model, *small_loaders)
    twin, other, fresh = copied(callback), copied(callback), Scripted([0.9])
    assert twin.state.accepted[-1].snapshot.is_of(model)
    again = Scripted([0.885])
    again.net = copy.deepcopy(model.net)
    make_trainer(1, [twin]).fit(again, *small_loaders)
    assert outcomes(twin) == ["kept"] * 2
    assert outcomes(callback) == ["kept"]
    make_trainer(1, [other]).fit(fresh, *small_loaders)  # a search of its own
    assert [(r.index, r.accuracy_drop) for r in other.records] == [(1, 0.0)]


def test_a_callback_in_the_middle_of_a_fit_is_copied_without_its_trainer(small_loaders, make_trainer):
    callback, model, copies = pruning(), Scripted([0.9, 0.89]), []
    model.on_train_epoch_end = lambda: copies.append(pickle.loads(pickle.dumps(callback)))  # no lambda is pickled
    make_trainer(1, [callback]).fit(model, *small_loaders)
    assert outcomes(copies[0]) == ["kept"]
    assert not hasattr(copies[0], "log")


def test_a_step_of_an_interrupted_fit_is_judged_in_the_next_one(small_loaders, make_trainer):
    class Interrupted(BaseException):
        pass

    class Stops(Scripted):
        stop = True

        def on_train_batch_start(self, batch, batch_idx):
            if self.stop and self.trainer.current_epoch == 2:
                raise Interrupted

    callback, model = pruning(), Stops([0.9, 0.89, 0.885])
    with pytest.raises(Interrupted):
        make_trainer(4, [callback]).fit(model, *small_loaders)
    assert callback.state.pending.epoch == 2
    model.stop = False
    make_trainer(1, [callback]).fit(model, *small_loaders)
    assert outcomes(callback) == ["kept"] * 3


def test_an_older_file_that_says_the_search_is_over_for_ever(small_loaders, make_trainer):
    callback = pruning()
    make_trainer(1, [callback]).fit(Classifier(), *small_loaders)
    plain = callback.state_dict()
    for name in ("best", "first", "left"):
        del plain[name]
    del plain["search"]["paused"]
    for reason, stopped in (("fit ended", None), ("the step fell below min_step=0.05",) * 2):
        plain["search"]["ended"] = reason
        state = PruningState.from_plain(plain)
        assert state.search.ended == stopped
        assert state.left == (stopped is None)
        assert state.reference == callback.state.dense.score


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"start_epoch": 5}, "nothing was pruned: the training ended after 2 epochs, and start_epoch=5"),
        ({"target_macs": 0.05}, "before target_macs=0.05 was reached (2 of 2 steps kept)"),
        (
            {"target_macs": 0.05, "max_channel_ratio": 0.05},
            "the search ended before target_macs=0.05 was reached (0 of",
        ),
        ({"target_macs": 0.75}, None),  # reached
        ({}, None),  # as far as the budget and the epochs go
    ],
)
def test_a_training_that_ends_too_early_for_what_was_asked_says_so(
    options, line, small_loaders, make_trainer, caplog, tmp_path
):
    export = Int8Export(tmp_path, engines=["onnxruntime"], latency_runs=1, threads=1)
    make_trainer(2, [pruning(**options), export]).fit(Scripted([0.9, 0.89, 0.885], int8=[0.885]), *small_loaders)
    told = [
        r.getMessage()
        for r in caplog.records
        if r.levelname == "WARNING" and (" was reached (" in r.message or "nothing was" in r.message)
    ]
    assert len(told) == bool(line)
    assert all(line in t for t in told)
    noted = [n for n in export.report.notes if " was reached (" in n or "Nothing was" in n]
    assert len(noted) == bool(line)
    assert all(line.lower() in n.lower() for n in noted)
