import numpy as np
import pytest
import torch
from networks import build
from torch.nn import functional as F

from hqp_lightning.core.fisher import compute, weight_fisher
from hqp_lightning.core.saliency import saliency
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import ChannelGroup, Filters
from hqp_lightning.surgery import Shadow

GROUP = ChannelGroup(
    "a",
    4,
    (),
    (
        Filters("a.weight", 0, (0, 1, 2, 3), (0, 1, 2, 3)),
        Filters("a.bias", 0, (0, 1, 2, 3), (0, 1, 2, 3)),
        Filters("b.weight", 0, (2, 3, 4, 5), (3, 2, 1, 0)),  # writes the same channels, in another order
        Filters("never_measured.weight", 0, (0, 1, 2, 3), (0, 1, 2, 3)),
    ),
    1.0,
)


def test_gate_values_pass_through_in_float32_and_unknown_groups_are_left_out():
    other = ChannelGroup("z", 2, (), (), 1.0)
    found = saliency({"a": torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)}, [GROUP, other])
    assert list(found) == ["a"]
    assert found["a"].dtype == torch.float32
    assert found["a"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_weight_values_are_summed_over_all_filters_of_a_channel():
    rng = np.random.default_rng(0)
    a, bias, b = rng.random((4, 3, 3, 3)), rng.random(4), rng.random((6, 2))
    fisher = {"a.weight": torch.tensor(a), "a.bias": torch.tensor(bias), "b.weight": torch.tensor(b)}
    expected = a.sum((1, 2, 3)) + bias + b.sum(1)[[5, 4, 3, 2]]
    np.testing.assert_allclose(saliency(fisher, [GROUP], "weight")["a"].numpy(), expected, rtol=1e-6)


def test_tied_channels_share_one_value():
    tied = ChannelGroup("a", 4, (), GROUP.filters[:1], 1.0, blocks=2)
    found = saliency({"a.weight": torch.tensor([[1.0], [10.0], [100.0], [1000.0]])}, [tied], "weight")
    assert found["a"].tolist() == [101.0, 1010.0]


def test_weight_saliency_of_a_residual_group_adds_its_writers():
    network = build("resnet18")
    groups = {g.name: g for g in Shadow(network, [torch.zeros(1, 3, 32, 32)]).groups()}
    group = next(g for g in groups.values() if any(f.parameter == "conv1.weight" for f in g.filters))
    x, y = torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2])
    layers = [f.parameter.removesuffix(".weight") for f in group.filters]
    assert sorted(layers) == ["conv1", "layer1.0.conv2", "layer1.1.conv2"]
    fisher = compute(weight_fisher(network, layers, lambda: F.cross_entropy(network(x), y, reduction="none")))
    expected = sum(v.sum((1, 2, 3)) for v in fisher.values())
    torch.testing.assert_close(saliency(fisher, [group], "weight")[group.name], expected)


def test_unknown_estimator():
    with pytest.raises(ConfigurationError, match="estimator='taylor'.*gate"):
        saliency({}, [], "taylor")
