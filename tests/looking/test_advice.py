import math

import pytest
import torch

from hqp_lightning.looking.advice import advice
from hqp_lightning.looking.training import classes_of, untrained
from hqp_lightning.records import Budget, Look, LookPoint


def a_look(losses, **metrics):
    points = tuple(LookPoint(0.05 * (i + 1), loss, 1.0, 1, 8) for i, loss in enumerate(losses))
    return Look("Net", 512, metrics, 1.0, 1, points, (), (), (), ())


def told(look, budget=None, available=2000, batches=100):
    return {a.setting: a for a in advice(look, budget, available, batches)}


def test_the_step_is_the_largest_cut_that_is_foretold_to_cost_little():
    assert told(a_look([0.001, 0.01, 0.019, 0.03]))["step"].value == 0.15
    assert told(a_look([0.001] * 10))["step"].value == 0.2
    timid = told(a_look([0.5, 0.9]))["step"]
    assert timid.value == 0.05
    assert "even the smallest" in timid.reason


def test_the_budget_is_twice_the_standard_error_of_the_monitored_accuracy():
    # 2 * sqrt(0.93 * 0.07 / 2000) = 0.01141, by hand
    drop = told(a_look([0.1], val_acc=0.93, val_loss=0.3))["max_drop"]
    assert drop.value == pytest.approx(0.015)
    assert "0.0114" in drop.reason
    other = told(a_look([0.1], val_acc=0.93, val_f1=0.5), Budget(0.1, "val_f1"))["max_drop"]
    assert other.value == pytest.approx(0.025)  # 2 * sqrt(0.25 / 2000) = 0.0224
    assert "val_f1" in other.reason
    assert told(a_look([0.1], val_acc=0.93), available=None)["max_drop"].value == pytest.approx(0.025)  # of 512
    assert "no accuracy" in told(a_look([0.1], val_loss=0.3))["max_drop"].reason


@pytest.mark.parametrize(("batches", "epochs"), [(120, 3), (200, 2), (360, 1), (5000, 1), (10, 3), (None, 1)])
def test_a_step_heals_for_as_long_as_in_the_published_runs(batches, epochs):
    assert told(a_look([0.1]), batches=batches)["every_n_epochs"].value == epochs


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"val_acc": 0.58, "val_loss": 0.1}, "val_acc 0.580 is about what naming the commonest class gives, 0.500"),
        ({"val_acc": 0.62, "val_loss": 9.0}, ""),  # 0.5 + 2 * sqrt(0.25 / 100) = 0.6
        ({"val_loss": 0.99}, "val_loss 0.99 is hardly below that of a guess by the classes' frequencies, 1.04"),
        ({"val_loss": 0.9}, ""),  # -(0.5 ln 0.5 + 2 * 0.25 ln 0.25) = 1.0397
        ({}, ""),
    ],
)
@pytest.mark.parametrize("shape", [(100,), (100, 1, 4)])
def test_a_network_that_does_not_know_its_input_is_told(metrics, said, shape):
    y = torch.tensor([0, 1, 1, 2])[torch.arange(math.prod(shape)) % 4].view(shape)
    assert untrained(metrics, [y[:60], y[60:]]).startswith(said)
    assert bool(untrained(metrics, [y])) == bool(said)
    assert not untrained(metrics, [y], usual=False) or "val_acc" in said
    if len(shape) > 1:  # what nobody labelled is no class
        assert untrained(metrics, [y, torch.full((50, 1, 4), 255)]).startswith(said[:40])


def test_of_other_targets_nothing_is_known():
    x = torch.zeros(4, 2)
    assert classes_of((x, torch.zeros(4))) is None
    assert classes_of((x, torch.zeros(4, 2, dtype=torch.int64))) is None
    assert classes_of({"x": x}) is None
    assert untrained({"val_acc": 0.0}, []) == ""
    assert untrained({"val_acc": 0.0}, [torch.zeros(4, dtype=torch.int64)]) == ""
