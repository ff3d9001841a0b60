from pathlib import Path

import pytest
import torch
from classifier import Classifier, Scripted
from lightning.pytorch.callbacks import ModelCheckpoint
from probes import Probe, assert_same, channels

from hqp_lightning import HQPPruning, load_pruned


def test_keeps_what_is_within_budget_and_halves_the_step_after_a_rollback(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.05)
    model = Scripted([0.90, 0.89, 0.50, 0.885, 0.87])  # baseline, kept, rolled back, kept, rolled back
    make_trainer(4, [pruning]).fit(model, *small_loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "rolled_back", "kept", "rolled_back"]
    assert [r.step for r in pruning.records] == [0.2, 0.2, 0.1, 0.1]
    assert [r.accuracy_drop for r in pruning.records] == pytest.approx([0.01, 0.40, 0.015, 0.03])
    assert [r.index for r in pruning.records] == [1, 2, 3, 4]
    assert "0.4000 below the baseline 0.9000; 0.0200 is allowed" in pruning.records[1].reason
    assert pruning.records[2].macs < pruning.records[0].macs


def test_the_search_ends_below_the_smallest_step(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.1)
    model = Scripted([0.90, 0.5])
    before = channels(model)
    make_trainer(6, [pruning]).fit(model, *small_loaders)
    assert [r.outcome for r in pruning.records] == ["rolled_back"] * 2
    assert pruning.state.search.ended == "the step fell below min_step=0.1"
    assert channels(model) == before


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_rollback_restores_everything_bit_for_bit(small_loaders, make_trainer, optimizer):
    before, after = Probe(1, 2), Probe(2, 3)
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.2)
    model = Scripted([0.9, 0.89, 0.5], optimizer=optimizer)  # epoch 0 kept, epoch 1 rolled back at the start of 2
    make_trainer(3, [before, pruning, after]).fit(model, *small_loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "rolled_back"]
    assert before.seen[1]["structure"] != before.seen[2]["structure"]
    assert_same(before.seen[1], after.seen[2])


def test_no_parameter_is_left_dead_in_the_optimizer(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.02, step=0.3, min_step=0.3)
    model = Scripted([0.9])
    trainer = make_trainer(2, [pruning])
    trainer.fit(model, *small_loaders)
    assert len(pruning.records) == 2
    optimizer = trainer.optimizers[0]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    for p in held:
        assert optimizer.state[p]["exp_avg"].shape == p.shape
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss = torch.nn.functional.cross_entropy(model.net(torch.rand(8, 1, 8, 8)), torch.arange(8))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert all(not torch.equal(kept[n], p) for n, p in model.named_parameters())


def test_the_model_that_remains_is_the_last_accepted_one(loaders, make_trainer, digits):
    pruning = HQPPruning("val_acc", 0.05, step=0.25, min_step=0.1, start_epoch=3)
    model = Classifier()
    trainer = make_trainer(9, [pruning])
    trainer.fit(model, *loaders)
    accepted = [r for r in pruning.records if r.outcome == "kept"]
    assert accepted
    model.eval()
    x, y = digits
    with torch.no_grad():
        accuracy = (model.net(x[1200:1400]).argmax(1) == y[1200:1400]).double().mean()
    assert float(accuracy) == pytest.approx(pruning.state.accepted[-1].score, abs=1e-6)
    assert sum(p.numel() for p in model.net.parameters()) == accepted[-1].params


def test_a_step_that_no_validation_judged_is_rolled_back(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.05, step=0.2, min_step=0.2)
    model = Scripted([0.9])
    make_trainer(3, [pruning], check_val_every_n_epoch=2).fit(model, *small_loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "rolled_back"]
    assert "before a validation could judge it" in pruning.records[1].reason
    assert sum(p.numel() for p in model.net.parameters()) == pruning.records[0].params


def test_a_step_over_budget_that_the_end_of_the_training_finds_healing_tells_its_score(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.2, every_n_epochs=2, patience=4)
    make_trainer(3, [pruning]).fit(Scripted([0.90, 0.85, 0.86, 0.87]), *small_loaders)
    (record,) = pruning.records
    assert (record.outcome, record.accuracy, record.accuracy_drop) == ("rolled_back", 0.87, pytest.approx(0.03))
    reason = "val_acc 0.8700 is 0.0300 below the baseline 0.9000; 0.0200 is allowed; fit ended while it healed"
    assert record.reason == reason
    early = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.2, every_n_epochs=3)  # never due: nobody judged it
    make_trainer(3, [early], check_val_every_n_epoch=2).fit(Scripted([0.90, 0.85]), *small_loaders)
    assert [(r.accuracy, r.reason) for r in early.records] == [(None, "fit ended before a validation could judge it")]


def test_healing_longer_than_the_training_is_not_begun(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.05, step=0.2, every_n_epochs=2)
    make_trainer(3, [pruning]).fit(Scripted([0.9]), *small_loaders)
    assert [(r.epoch, r.outcome) for r in pruning.records] == [(0, "kept")]
    assert pruning.state.search.paused == "no epochs are left to heal and judge another step"


def test_patience_lets_a_step_heal_until_it_is_within_budget(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.2, patience=2)
    # baseline; kept at the second look; then over budget three times: rolled back at the last
    model = Scripted([0.90, 0.86, 0.885, 0.8, 0.85, 0.87])
    make_trainer(5, [pruning]).fit(model, *small_loaders)
    assert [(r.epoch, r.outcome) for r in pruning.records] == [(0, "kept"), (2, "rolled_back")]
    assert [r.accuracy for r in pruning.records] == pytest.approx([0.885, 0.87])


def test_a_step_that_does_not_heal_any_more_is_rolled_back_at_once(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.1, patience=8)
    # 0.80 after two epochs, 0.82 after four: 0.86 after eight more would not do; half a step is kept
    model = Scripted([0.90, 0.78, 0.80, 0.79, 0.82, 0.89])
    make_trainer(20, [pruning]).fit(model, *small_loaders)
    first, second, *_ = pruning.records
    assert (first.outcome, first.epoch, second.epoch, second.step) == ("rolled_back", 0, 4, 0.1)
    assert first.healing == pytest.approx((0.78, 0.80, 0.79, 0.82))
    assert second.healing == pytest.approx((0.89,))


def test_a_step_is_given_up_at_the_end_of_an_epoch_only(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.2, patience=1)
    # dense; the halves of the first epoch; of the second, within budget at its end; nothing that is no number hides it
    model = Scripted([0.90, 0.5, 0.5, float("nan"), 0.89])
    make_trainer(2, [pruning], val_check_interval=0.5).fit(model, *small_loaders)
    assert [r.outcome for r in pruning.records] == ["kept"]
    assert pruning.records[0].healing == pytest.approx((0.5, 0.89))


def test_the_curve_counts_epochs_where_not_every_one_is_validated(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.1, patience=20)
    # 0.83 after two validations, 0.84 after four: 13 epochs are left, six more validations, by then 0.8725
    model = Scripted([0.90, 0.81, 0.83, 0.835, 0.84, 0.885])
    make_trainer(30, [pruning], check_val_every_n_epoch=2).fit(model, *small_loaders)
    assert pruning.records[0].outcome == "rolled_back"
    assert pruning.records[0].healing == pytest.approx((0.81, 0.83, 0.835, 0.84))


def test_the_curve_of_a_pending_step_is_in_a_checkpoint(small_loaders, make_trainer, tmp_path):
    pruning, every = (
        HQPPruning("val_acc", 0.02, step=0.2, patience=8),
        ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1),
    )
    trainer = make_trainer(3, [pruning, every], enable_checkpointing=True)
    trainer.fit(Scripted([0.90, 0.78, 0.80, 0.79]), *small_loaders)
    file = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)
    pruning.load_state_dict(file["callbacks"][pruning.state_key])
    assert pruning.state.pending.epoch == 0
    assert pruning.state.healing == pytest.approx({0: 0.78, 1: 0.80, 2: 0.79})


def test_start_epoch_and_the_best_dense_score_is_the_baseline(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.05, step=0.2, start_epoch=3)
    # measured before training since nothing else would check the monitor, then three dense epochs
    make_trainer(4, [pruning]).fit(Scripted([0.5, 0.7, 0.92, 0.88, 0.86]), *small_loaders)
    (step,) = pruning.records
    assert step.epoch == 3
    assert step.accuracy_drop == pytest.approx(0.06)
    assert step.outcome == "rolled_back"


def test_a_given_baseline_counts_instead_of_the_measured_one(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.05, step=0.2, baseline=0.8)
    make_trainer(1, [pruning]).fit(Scripted([0.9, 0.76]), *small_loaders)
    assert pruning.records[0].outcome == "kept"
    assert pruning.records[0].accuracy_drop == pytest.approx(0.04)


def test_target_macs_and_rounding_and_ratio(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.05, step=0.3, target_macs=0.5, round_to=4, max_channel_ratio=0.5)
    model = Scripted([0.9])
    make_trainer(9, [pruning]).fit(model, *small_loaders)
    assert pruning.state.search.ended == "target_macs=0.5 reached"
    assert pruning.records[-1].macs <= 0.5 * pruning.state.dense_macs
    assert all(c % 4 == 0 for c in channels(model))
    assert all(c >= full / 2 for c, full in zip(channels(model), [32, 64, 64], strict=True))


def test_mid_epoch_validations_do_not_judge_early(small_loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.2)
    # baseline; then twice an epoch: the middle of the epoch is bad, its end is good
    model = Scripted([0.9, 0.1, 0.89, 0.1, 0.885])
    make_trainer(2, [pruning], val_check_interval=0.5, limit_train_batches=4).fit(model, *small_loaders)
    assert [(r.epoch, r.outcome) for r in pruning.records] == [(0, "kept"), (1, "kept")]
    assert [r.accuracy for r in pruning.records] == pytest.approx([0.89, 0.885])


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_straight_and_resumed_runs_agree_exactly(small_loaders, make_trainer, tmp_path):
    def run(ckpt=None):
        torch.manual_seed(0)
        pruning = HQPPruning("val_acc", 0.1, step=0.2, min_step=0.05, start_epoch=1)
        checkpoint = ModelCheckpoint(tmp_path / "a", "{epoch}", save_top_k=-1, enable_version_counter=False)
        model = Classifier()
        trainer = make_trainer(6, [pruning, checkpoint], enable_checkpointing=True)
        trainer.fit(model, *small_loaders, ckpt_path=ckpt, weights_only=True)
        return model, pruning

    straight, first = run()
    for epoch in (0, 2, 4):
        resumed, second = run(tmp_path / "a" / f"epoch={epoch}.ckpt")
        for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(a, b), (epoch, name)
        strip = [(r.index, r.outcome, r.macs, r.accuracy) for r in first.records]
        assert [(r.index, r.outcome, r.macs, r.accuracy) for r in second.records] == strip


@pytest.mark.parametrize("weights_only", [False, True])
def test_load_pruned_and_a_checkpoint_saved_after_fit(small_loaders, make_trainer, tmp_path, weights_only):
    pruning = HQPPruning("val_acc", 0.5, step=0.3)
    model = Classifier(lr=1e-3)
    trainer = make_trainer(2, [pruning])
    trainer.fit(model, *small_loaders)
    assert channels(model) != channels(Classifier())
    trainer.save_checkpoint(tmp_path / "pruned.ckpt", weights_only=weights_only)
    loaded = load_pruned(Classifier, tmp_path / "pruned.ckpt")
    assert loaded.hparams.lr == 1e-3
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(loaded.eval().net(x), model.eval().net(x))
    instance = load_pruned(Classifier(), tmp_path / "pruned.ckpt")
    assert torch.equal(instance.eval().net(x), model.net(x))


def test_steps_are_logged_and_told_in_one_line_each(small_loaders, make_trainer, tmp_path, capsys):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.2)
    make_trainer(2, [pruning], logger=logger, log_every_n_steps=1).fit(Scripted([0.9, 0.89, 0.3]), *small_loaders)
    rows = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    assert {"hqp/kept", "hqp/macs", "hqp/params", "hqp/accuracy_drop"} <= set(rows[0].split(","))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("hqp step")]
    assert [line.split(":")[0] for line in lines] == ["hqp step 1 kept", "hqp step 2 rolled back"]
