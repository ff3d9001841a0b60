import pytest
import torch
from networks import build
from torch import nn

from hqp_lightning.surgery import recalibrate_batchnorm_


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, 3, 8, 8, generator=generator) * 2 + 1,) for _ in range(count)]


def test_statistics_are_the_average_over_the_batches():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    data = batches(3)
    assert recalibrate_batchnorm_(network, data) == 3
    arrays = [x.numpy() for (x,) in data]
    mean = sum(a.mean((0, 2, 3)) for a in arrays) / 3
    variance = sum(a.var((0, 2, 3), ddof=1) for a in arrays) / 3  # torch's running variance is the unbiased one
    torch.testing.assert_close(network[0].running_mean, torch.from_numpy(mean))
    torch.testing.assert_close(network[0].running_var, torch.from_numpy(variance))
    # The second layer sees what the first one normalises by the batch.
    total = torch.zeros(4)
    for (x,) in data:
        normal = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        total += network[1](normal).mean((0, 2, 3)).detach() / 3
    torch.testing.assert_close(network[2].running_mean, total, atol=1e-5, rtol=1e-4)


def test_dropout_stays_off_and_random_state_untouched():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3)).train()
    state = torch.get_rng_state()
    (data,) = batches(1)
    recalibrate_batchnorm_(network, [data])
    torch.testing.assert_close(network[1].running_mean, data[0].mean((0, 2, 3)))
    assert torch.equal(torch.get_rng_state(), state)


def test_flags_momentum_and_gradients_are_as_before():
    network = build("mobilenet_v3_small").train()
    network.features[1].eval()
    network.features[2].block[0][1].momentum = 0.37
    modes, momenta = [m.training for m in network.modules()], [getattr(m, "momentum", 0) for m in network.modules()]
    recalibrate_batchnorm_(network, [(torch.randn(4, 3, 32, 32),)])
    assert [m.training for m in network.modules()] == modes
    assert [getattr(m, "momentum", 0) for m in network.modules()] == momenta
    assert all(p.grad is None for p in network.parameters())


def test_flags_are_restored_when_a_batch_fails():
    network = nn.Sequential(nn.BatchNorm2d(3, momentum=0.25), nn.Dropout()).train()
    with pytest.raises(ValueError, match="4D"):
        recalibrate_batchnorm_(network, [(torch.randn(2, 3),)])
    assert network[0].momentum == 0.25
    assert all(m.training for m in network.modules())


def test_without_batches_or_batchnorm_nothing_changes():
    network = build("resnet18")
    before = {n: t.clone() for n, t in network.state_dict().items()}
    assert recalibrate_batchnorm_(network, []) == 0
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())

    def never():
        raise AssertionError("no BatchNorm, so no batch is needed")
        yield

    assert (
        recalibrate_batchnorm_(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), never())
        == 0
    )
