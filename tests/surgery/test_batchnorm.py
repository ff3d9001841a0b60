"""BatchNorm after a cut, against numpy: what the cut changed comes in, and nothing else."""

import copy

import numpy as np
import pytest
import torch
from networks import build
from torch import nn

from hqp_lightning.core.moments import carried, moments
from hqp_lightning.surgery import Shadow, apply_cut_, recalibrate_batchnorm_, tracking_batchnorm


def batches(count, seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 3, 8, 8, generator=generator) * 2 + 1,) for _ in range(count)]


def network(folded=False):
    """Two convolutions whose statistics are random numbers, or those of an identity."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 4),
    )
    if not folded:
        for norm in (net[1], net[4]):
            for values in (norm.running_mean, norm.weight.data, norm.bias.data):
                values.normal_()
            norm.running_var.uniform_(0.5, 2)
    return net.eval().requires_grad_(False)


def cut(net, channels):
    old = copy.deepcopy(net)
    made = Shadow(net, batches(1)[0]).cut({"0": channels})
    apply_cut_(net, made)
    return old, made.kept


def at(net, layer, data):
    """What a layer receives, over all batches: shape (channels, values)."""
    values = np.concatenate([net[:layer](x).numpy() for (x,) in data])
    return values.swapaxes(0, 1).reshape(values.shape[1], -1).astype(np.float64)


def normalised(net, layer, data):
    """The same after that layer's statistics."""
    mean, deviation = net[layer].running_mean.numpy(), np.sqrt(net[layer].running_var.numpy() + net[layer].eps)
    return (at(net, layer, data) - mean[:, None]) / deviation[:, None]


@pytest.mark.parametrize("shape", [(70, 5), (9, 5, 400), (40, 5, 9, 8), (1, 5, 1, 1), (3, 5, 2, 30, 41)])
def test_moments_are_those_of_all_values_in_any_memory_format(shape):
    x = 100 + np.random.default_rng(0).normal(size=shape) * np.arange(1, 6).reshape(5, *[1] * (len(shape) - 2))
    rows = x.swapaxes(0, 1).reshape(5, -1)
    tensor = torch.tensor(x, dtype=torch.float32)
    for t in (tensor, tensor.to(memory_format=torch.channels_last) if len(shape) == 4 else tensor.transpose(0, 1)):
        found = moments(t if t.shape == tensor.shape else t.contiguous().transpose(0, 1))
        assert found.count == rows.shape[1]
        np.testing.assert_allclose(found.mean.numpy(), rows.mean(1), rtol=1e-5)
        np.testing.assert_allclose(found.variance.numpy(), rows.var(1), rtol=1e-4, atol=1e-9)


def test_the_output_keeps_its_mean_and_variance():
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (50, 4)), rng.normal(-1, 0.3, (70, 4))
    mean, variance, eps = rng.normal(size=4), rng.uniform(0.5, 2, 4), 0.01
    tensors = (torch.tensor(t) for t in (mean, variance))
    found = carried(*tensors, eps, *(moments(torch.tensor(t)) for t in (x, y)))
    before = (x - mean) / np.sqrt(variance + eps)
    new_mean, new_variance = (t.double().numpy() for t in found)
    after = (y - new_mean) / np.sqrt(new_variance + eps)
    np.testing.assert_allclose(after.mean(0), before.mean(0), rtol=1e-2, atol=1e-2)
    # Exactly so without eps, which does not scale.
    np.testing.assert_allclose(new_variance, variance * y.var(0) / x.var(0), rtol=1e-5)
    stretch = np.sqrt((new_variance + eps) / (variance + eps))
    np.testing.assert_allclose((y.mean(0) - new_mean) / stretch, x.mean(0) - mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("folded", [False, True])
def test_where_nothing_was_removed_nothing_changes_to_the_last_bit(folded):
    net = network(folded).train()
    old = copy.deepcopy(net)
    assert recalibrate_batchnorm_(net, old, {}, batches(3)) == 3
    assert all(torch.equal(t, old.state_dict()[n]) for n, t in net.state_dict().items())


def test_statistics_of_the_data_become_those_of_the_data():
    net, data = network(), batches(3)
    for layer in (1, 4):
        values = at(net, layer, data)
        net[layer].running_mean.copy_(torch.tensor(values.mean(1)))
        net[layer].running_var.copy_(torch.tensor(values.var(1)))
    old, kept = cut(net, [2, 5, 7, 11, 12])
    before = net[1].running_var.clone()
    recalibrate_batchnorm_(net.train(), old, kept, data)
    net.eval()
    values = at(net, 4, data)
    np.testing.assert_allclose(net[4].running_mean, values.mean(1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(net[4].running_var, values.var(1), rtol=1e-3)
    torch.testing.assert_close(net[1].running_var, before, rtol=1e-6, atol=0)  # nothing changed in front of it


@pytest.mark.parametrize("folded", [False, True])
def test_a_cut_network_is_nearer_to_what_it_was_than_without(folded):
    net, data = network(folded), batches(4)
    old, kept = cut(net, [1, 2, 3, 4])
    unseen = batches(1, seed=1, size=64)[0][0]

    def error():
        return float((net.eval()(unseen) - old.eval()(unseen)).square().mean())

    without = error()
    recalibrate_batchnorm_(net.train(), old, kept, data)
    assert error() < 0.8 * without
    seen, want = normalised(net, 4, data), normalised(old, 4, data)
    np.testing.assert_allclose(seen.mean(1), want.mean(1), atol=1e-3)
    np.testing.assert_allclose(seen.std(1), want.std(1), rtol=1e-3)


def test_frozen_layers_stay():
    net = nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(5)), nn.BatchNorm2d(3, track_running_stats=False)).train()
    net[1].eval()
    net[2].momentum = 0.0
    net[3].track_running_stats = False  # as Lightning's BaseFinetuning leaves it
    assert tracking_batchnorm(net) == ("0", "4")
    net, data = network().train(), batches(2)
    net[4].eval()
    old, kept = cut(net, [1, 2, 3])
    statistics = net[4].running_mean.clone(), net[4].running_var.clone()
    recalibrate_batchnorm_(net, old, kept, data)
    assert torch.equal(net[4].running_mean, statistics[0])
    assert torch.equal(net[4].running_var, statistics[1])


def test_a_broken_image_is_left_out():
    (net, data), broken = (network().train(), batches(2)), torch.randn(6, 3, 8, 8)
    broken[3, 1, 2, 2] = torch.nan
    old, kept = cut(net, [1, 2, 3])
    alone = copy.deepcopy(net)
    assert recalibrate_batchnorm_(alone, old, kept, data) == 2
    assert recalibrate_batchnorm_(net, old, kept, [data[0], (broken,), data[1]]) == 2
    assert all(torch.equal(t, alone.state_dict()[n]) for n, t in net.state_dict().items())
    assert recalibrate_batchnorm_(net, old, kept, [(broken,)]) == 0
    assert all(torch.equal(t, alone.state_dict()[n]) for n, t in net.state_dict().items())


def test_a_batch_of_one_sample():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.BatchNorm1d(8))
    net.append(nn.Linear(8, 2))
    old, rows = copy.deepcopy(net), torch.randn(9, 5)
    made = Shadow(net, (rows,)).cut({"0": [1, 2, 3]})
    apply_cut_(net, made)
    whole = copy.deepcopy(net)
    assert recalibrate_batchnorm_(whole, old, made.kept, [(rows,)]) == 1
    assert recalibrate_batchnorm_(net, old, made.kept, [(rows[:8],), (rows[8:],)]) == 2
    assert not torch.allclose(net[4].running_var, old[4].running_var)
    for name, value in net.state_dict().items():  # a variance over all the rows, not the mean of two
        torch.testing.assert_close(value, whole.state_dict()[name])


class Activated(nn.BatchNorm2d):
    """As timm's: normalisation and activation in one layer, called by name."""

    def forward(self, x):
        return torch.relu(super().forward(x))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.more = nn.Conv2d(3, 16, 3), Activated(16), nn.Conv2d(16, 8, 3)
        self.last, self.head = nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, images):
        return self.head(self.last(self.more(self.norm(x=self.conv(images)))).mean((2, 3)))


def test_a_layer_that_does_more_than_normalise_is_run_as_it_is():
    torch.manual_seed(0)
    net, data = Named(), batches(1)
    old = copy.deepcopy(net)
    made = Shadow(net, data[0]).cut({"conv": [0, 1, 2]})
    apply_cut_(net, made)
    recalibrate_batchnorm_(net, old, made.kept, data)
    with torch.no_grad():
        received = [n.more(n.norm(n.conv(data[0][0]))).transpose(0, 1).flatten(1) for n in (net.eval(), old.eval())]
    wanted = old.last.running_var * received[0].var(1) / received[1].var(1)
    torch.testing.assert_close(net.last.running_var, wanted, rtol=1e-4, atol=1e-6)


def test_flags_momentum_random_state_and_gradients_are_as_before():
    net = build("mobilenet_v3_small").train()
    net.features[1].eval()
    net.features[2].block[0][1].momentum = 0.37
    modes, momenta = [m.training for m in net.modules()], [getattr(m, "momentum", 0) for m in net.modules()]
    state = torch.get_rng_state()
    assert recalibrate_batchnorm_(net, copy.deepcopy(net), {}, [(torch.ones(4, 3, 32, 32),)]) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in net.modules()] == modes
    assert [getattr(m, "momentum", 0) for m in net.modules()] == momenta
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_all_is_as_before_when_a_batch_fails():
    net = network().train()
    old, kept = cut(net, [1, 2])
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(RuntimeError):
        recalibrate_batchnorm_(net, old, kept, [*batches(1), (torch.randn(2, 5, 8, 8),)])
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(m.training for m in net.modules())


def test_without_batches_or_batchnorm_nothing_changes():
    net = build("resnet18")
    before = {n: t.clone() for n, t in net.state_dict().items()}
    assert recalibrate_batchnorm_(net, copy.deepcopy(net), {}, []) == 0
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())

    def never():
        raise AssertionError("no BatchNorm, so no batch is needed")
        yield

    plain = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert recalibrate_batchnorm_(plain, copy.deepcopy(plain), {}, never()) == 0
