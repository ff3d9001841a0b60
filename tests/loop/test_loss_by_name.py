"""``loss_fn`` as the docs write it: from LightningCLI's YAML, from Hydra's, and a lambda in code."""

import sys
import types

import pytest
import torch
from hydra.utils import instantiate

from hqp_lightning import ConfigurationError, FisherAccumulator, HQPPruning, Int8Export

ARGUMENTS = {
    HQPPruning: {"monitor": "val_acc", "max_drop": 0.01},
    FisherAccumulator: {},
    Int8Export: {"dirpath": "deploy", "monitor": "val_acc", "max_drop": 0.01},
}


@pytest.fixture
def losses(monkeypatch):
    """A module of the user's with the function of docs/existing-trainer.md, which has no annotations."""
    module = types.ModuleType("users_losses")

    def loss_fn(pl_module, batch):
        logits = pl_module.net(batch["image"])
        return torch.nn.functional.cross_entropy(logits, batch["label"], reduction="none")

    module.loss_fn, module.number = loss_fn, 3
    loss_fn.__module__, loss_fn.__qualname__ = "users_losses", "loss_fn"
    monkeypatch.setitem(sys.modules, "users_losses", module)
    return module


def of(callback):
    return callback.loss_fn if isinstance(callback, FisherAccumulator) else callback.options.loss_fn


@pytest.mark.parametrize("cls", ARGUMENTS)
def test_by_its_path_in_lightning_clis_yaml(cls, losses, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "callback")
    values = {**ARGUMENTS[cls], "loss_fn": "users_losses.loss_fn"}
    made = parser.instantiate_classes(parser.parse_object({"callback": values})).callback
    assert of(made) is losses.loss_fn


@pytest.mark.parametrize("cls", ARGUMENTS)
def test_by_its_path_in_hydra_and_in_code(cls, losses):
    node = {"_target_": f"hqp_lightning.{cls.__name__}", **ARGUMENTS[cls], "loss_fn": "users_losses.loss_fn"}
    assert of(instantiate(node)) is losses.loss_fn

    def anything(pl_module, batch):
        return batch

    for given in (losses.loss_fn, anything, lambda pl_module, batch: batch):
        assert of(cls(**ARGUMENTS[cls], loss_fn=given)) is given
    assert of(cls(**ARGUMENTS[cls])) is None
    if cls is HQPPruning:
        assert instantiate(node).own_fisher.loss_fn is losses.loss_fn


@pytest.mark.parametrize("wrong", ["users_losses.loss", "users_losses.number", "nowhere.loss_fn", 3])
@pytest.mark.parametrize("cls", ARGUMENTS)
def test_what_is_no_function_is_refused(cls, losses, wrong):
    with pytest.raises(ConfigurationError, match=r"loss_fn=.* is no function: pass one, or the dotted path"):
        cls(**ARGUMENTS[cls], loss_fn=wrong)
