import pytest
import torch
from torch import nn
from torchvision import models

from hqp_lightning.surgery import layer_macs


@pytest.mark.parametrize(
    ("name", "weights"),
    [("resnet18", models.ResNet18_Weights.DEFAULT), ("mobilenet_v3_small", models.MobileNet_V3_Small_Weights.DEFAULT)],
)
def test_macs_are_those_that_torchvision_publishes(name, weights):
    published = weights.meta["_ops"]  # "GFLOPS", which counts a multiply-accumulate once
    macs, shapes = layer_macs(getattr(models, name)().eval(), [torch.zeros(2, 3, 224, 224)])
    assert sum(macs.values()) / 1e9 == pytest.approx(published, rel=0.02)
    assert shapes == ((2, 1000),)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=True), (3, 8, 6), 4 * 3 * 8 * 27),
        (nn.Conv2d(8, 16, 3, groups=4), (8, 5, 5), 9 * 16 * 2 * 9),
        (nn.Conv2d(8, 8, (1, 5), groups=8), (8, 4, 9), 4 * 5 * 8 * 5),
        (nn.Conv1d(4, 6, 3), (4, 10), 8 * 6 * 12),
        (nn.Linear(10, 7), (10,), 70),
        (nn.Linear(10, 7), (5, 10), 5 * 70),
    ],
)
@pytest.mark.parametrize("samples", [1, 3])
def test_macs_of_one_sample_by_hand(layer, shape, macs, samples):
    assert layer_macs(nn.Sequential(layer), [torch.zeros(samples, *shape)])[0] == {"0": macs}


def test_a_layer_that_runs_twice_counts_twice_and_outputs_may_be_nested():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return {"a": self.layer(x), "b": [self.norm(self.layer(x)), (x[:, :1],)], "text": "ignored"}

    network = Twice().eval()
    macs, shapes = layer_macs(network, [torch.zeros(2, 4)])
    assert macs == {"layer": 32.0}
    assert shapes == ((2, 4), (2, 4), (2, 1))
    assert not network.layer._forward_hooks
