"""The baseline follows the best score that a dense or an accepted model reached."""

import copy

import pytest
import torch
from classifier import Scripted

from hqp_lightning import HQPPruning, Int8Export
from hqp_lightning.core.search import Search
from hqp_lightning.records import Budget
from hqp_lightning.search.judging import doubts, still_learning
from hqp_lightning.search.state import PruningState

LEARNING = "the dense model was still learning: val_acc was 0.1000 before the first step and reached 0.8000 since"


def run(make_trainer, loaders, scores, epochs, *others, **options):
    pruning = HQPPruning("val_acc", 0.02, **{"step": 0.1, "min_step": 0.02, **options})
    make_trainer(epochs, [pruning, *others]).fit(Scripted(scores, int8=[0.795]), *loaders)
    return pruning


def test_a_network_that_is_not_trained_yet(small_loaders, make_trainer, tmp_path, capsys):
    settings = {"engines": ["onnxruntime"], "latency_runs": 1, "calibration_batches": 1, "threads": 1}
    export = Int8Export(tmp_path, **settings)
    # chance; learned while pruned; over budget of what was reached, though far above chance; within it
    pruning = run(make_trainer, small_loaders, [0.1, 0.6, 0.8, 0.7, 0.79], 4, export)
    assert [r.outcome for r in pruning.records] == ["kept", "kept", "rolled_back", "kept"]
    assert [r.accuracy_drop for r in pruning.records] == pytest.approx([-0.5, -0.2, 0.1, 0.01])
    assert "0.1000 below the baseline 0.8000; 0.0200 is allowed" in pruning.records[2].reason
    told = [line for line in capsys.readouterr().out.splitlines() if "hqp: the dense model" in line]
    assert len(told) == 1
    assert told[0].startswith("hqp: the dense model was still learning: val_acc was 0.1000 before")
    assert any(note.startswith(f"T{LEARNING[1:]}") for note in export.report.notes)
    assert export.report.baseline.accuracy == pytest.approx(0.1)  # the dense model's own
    assert export.report.held_to == pytest.approx(0.8)
    assert export.report.accuracy_drop == pytest.approx(0.005)


def test_an_accepted_model_that_gets_better_raises_it_too(small_loaders, make_trainer):
    # kept at 0.895, then trained on to 0.905 while no step fits into the epochs that are left
    pruning = run(make_trainer, small_loaders, [0.9, 0.89, 0.895, 0.905], 3, every_n_epochs=2, patience=0)
    assert pruning.state.reference == pytest.approx(0.905)
    assert pruning.state.first == pytest.approx(0.9)


def test_a_given_baseline_stays_as_given(small_loaders, make_trainer, capsys):
    pruning = run(make_trainer, small_loaders, [0.1, 0.6, 0.4], 2, baseline=0.3)
    assert [r.accuracy_drop for r in pruning.records] == pytest.approx([-0.3, -0.1])
    assert "still learning" not in capsys.readouterr().out


def test_smaller_is_better(small_loaders, make_trainer):
    pruning = run(make_trainer, small_loaders, [0.9, 0.3, 0.35, 0.31], 3, mode="min")
    assert [r.outcome for r in pruning.records] == ["kept", "rolled_back", "kept"]
    assert [r.accuracy_drop for r in pruning.records] == pytest.approx([-0.6, 0.05, 0.01])
    budget = pruning.budget
    assert "was 0.9000 before the first step and reached 0.3000 since" in still_learning(pruning.state, budget)


def test_a_rise_within_the_budget_or_before_the_first_step_is_nothing_to_tell(small_loaders, make_trainer, capsys):
    pruning = run(make_trainer, small_loaders, [0.1, 0.5, 0.9, 0.915], 3, start_epoch=2)
    assert pruning.state.first == pytest.approx(0.9)
    assert "still learning" not in capsys.readouterr().out


def test_the_best_score_is_in_the_checkpoint(small_loaders, make_trainer):
    pruning = run(make_trainer, small_loaders, [0.1, 0.6, 0.8], 2)
    loaded = PruningState.from_plain(copy.deepcopy(pruning.state.to_plain()))
    assert (loaded.best, loaded.first) == (pytest.approx(0.8), pytest.approx(0.1))
    assert still_learning(loaded, Budget(0.02, "val_acc")).startswith(LEARNING)


def test_a_score_that_is_not_a_number_is_no_baseline(small_loaders, make_trainer, capsys):
    nan = float("nan")
    pruning = run(make_trainer, small_loaders, [nan, nan, 0.9, 0.89, nan], 4)
    assert [(r.epoch, r.outcome) for r in pruning.records] == [(2, "kept"), (3, "rolled_back")]
    assert pruning.records[0].accuracy_drop == pytest.approx(0.01)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("hqp: val_acc is nan")]
    assert said == ["hqp: val_acc is nan, not a number that can be judged; nothing is kept on it"]


def test_saliencies_that_are_not_numbers_are_told():
    nan, budget = torch.tensor([float("nan")] * 2), Budget(0.02, "val_acc")
    state = PruningState(Search(0.1, 0.05))
    assert [kind for kind, _ in doubts(state, 0.9, {"0": nan}, budget)] == ["saliency"]
    assert list(doubts(state, 0.9, {"0": nan, "3": torch.ones(2)}, budget)) == []


class SteppedByHand(Scripted):
    """Its schedules are stepped in a hook of the validation, with the score or without; it notes the rates."""

    def __init__(self):
        super().__init__([0.9])
        self.automatic_optimization, self.rates = False, []

    def configure_optimizers(self):
        sgd, other = (torch.optim.SGD(p.parameters(), 1.0) for p in (self.net[:4], self.net[4:]))
        halving = torch.optim.lr_scheduler.StepLR(sgd, 1, 0.5)
        return [sgd, other], [halving, torch.optim.lr_scheduler.ReduceLROnPlateau(other, "max", 0.1, patience=0)]

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            halving, plateau = self.lr_schedulers()
            halving.step()
            plateau.step(0.5)

    def on_train_epoch_start(self):
        self.rates.append([o.param_groups[0]["lr"] for o in self.trainer.optimizers])


def test_the_validation_of_the_baseline_steps_no_schedule(small_loaders, make_trainer):
    """The rates are those of a fit without pruning; with it, one validation more runs before the first epoch."""
    rates = []
    for callbacks in ([], [HQPPruning("val_acc", 0.02, step=0.1)]):
        model = SteppedByHand()
        make_trainer(3, callbacks).fit(model, *small_loaders)
        rates.append(model.rates)
    assert rates[0] == rates[1] == [[1.0, 1.0], [0.5, 1.0], [0.25, pytest.approx(0.1)]]
