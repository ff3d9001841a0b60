"""A second name for a part of the network, and metrics that are no number."""

import pytest
import torch
from classifier import Classifier
from torch import nn

from hqp_lightning import ConfigurationError, HQPPruning
from hqp_lightning.loop.network import find_network


class TwoNames(Classifier):
    def __init__(self):
        super().__init__()
        self.backbone = self.net[:11]
        self.net = nn.Sequential(self.backbone, self.net[11])


def test_a_second_name_for_a_part_of_the_network(loaders, make_trainer):
    model, pruning = TwoNames(), HQPPruning("val_acc", 0.9, step=0.3)
    name, network = find_network(model, None)
    assert (name, network) == ("net", model.net)
    make_trainer(1, [pruning]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"]
    assert sum(p.numel() for p in model.parameters()) == pruning.records[0].params


@pytest.mark.parametrize("answer", [torch.tensor([0.1, 0.9]), "high"])
def test_a_metric_that_is_no_number(loaders, make_trainer, monkeypatch, answer):
    model = Classifier()
    monkeypatch.setattr("hqp_lightning.loop.trainer._logged", lambda trainer: {"val_acc": answer})
    with pytest.raises(ConfigurationError, match="monitor='val_acc' is one number that can be judged by; .* logged"):
        make_trainer(1, [HQPPruning("val_acc", 0.1)]).fit(model, *loaders)
