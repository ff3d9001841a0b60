"""Layers on the INT8 grid in a live network: values and gradients by hand."""

import copy

import pytest
import torch
from torch import nn

from hqp_lightning.core.calibration import Range
from hqp_lightning.surgery import fake_quantized


def on_grid(x, step):
    return (x / step).round().clamp(-127, 127) * step


def test_values_and_gradients_by_hand():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight[1] = 0  # a dead channel has no scale of its own
        layer.weight[2] *= 100  # and a loud one does not make the others coarse
    x = torch.randn(8, 6, requires_grad=True)
    step = 1.5 / 127  # some of x is beyond 1.5
    xq = on_grid(x.detach(), step)
    wq = on_grid(layer.weight.detach(), (layer.weight.detach().abs().amax(1, keepdim=True) / 127).clamp_min(1e-9))
    assert (x.abs() > 1.5).any()
    assert not torch.equal(xq, x)

    with fake_quantized(nn.Sequential(layer), {"0": Range.symmetric(1.5)}):
        y = layer(x)
        (y * torch.arange(4)).sum().backward()
    g = torch.arange(4.0).expand(8, 4)
    torch.testing.assert_close(y, xq @ wq.T + layer.bias)
    torch.testing.assert_close(layer.weight.grad, g.T @ xq)
    torch.testing.assert_close(x.grad, (g @ wq) * (x.detach().abs() <= 1.5))


def test_uint8_by_hand():
    """The grid -0.5, -0.4, ... 25.0, with zero on it; what lies below clips, and takes no gradient."""
    layer = nn.Linear(4, 1, bias=False)
    x = torch.tensor([[-2.0, -0.42, 0.04, 7.77]], requires_grad=True)
    given = Range(-0.5, 25.0, "uint8")
    assert (given.zero_point, given.integers) == (5, (0, 255))
    with torch.no_grad():
        layer.weight.fill_(127.0)  # on its own grid
    with fake_quantized(nn.Sequential(layer), {"0": given}):
        y = layer(x)
        y.backward()
    torch.testing.assert_close(y.detach(), torch.tensor([[127 * (-0.5 - 0.4 + 0.0 + 7.8)]]))
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 127, 127, 127]]))


@pytest.mark.parametrize("given", [Range.symmetric(1.5), Range(-0.5, 2.05, "uint8")])
def test_gradients_of_steps_are_those_of_torchs_own_learnable_quantizer(given):
    torch.manual_seed(0)
    layer = nn.Linear(6, 1, bias=False)
    nn.init.constant_(layer.weight, 127.0)
    x = torch.randn(8, 6, requires_grad=True)
    with fake_quantized(nn.Sequential(layer), {"0": given}) as steps:
        (layer(x) * torch.arange(8.0)[:, None]).sum().backward()
    ours, (step,) = x.grad.clone(), steps.values()
    x.grad = None
    low, high = given.integers
    scale, zero = torch.tensor([given.scale], requires_grad=True), torch.tensor([float(given.zero_point)])
    rounded = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, low, high, (6 * high) ** -0.5)
    (127 * rounded.sum(1) * torch.arange(8.0)).sum().backward()
    torch.testing.assert_close(step.grad, scale.grad[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, x.grad)


def test_layers_that_share_a_range_share_its_step():
    a, b = Range.symmetric(1.27), Range(-0.5, 2.05, "uint8", factors=(1.0, 0.5))
    layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    with fake_quantized(layers, {"0": a, "1": a, "2": b}) as steps:
        assert list(steps) == [a, b]


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        net(torch.randn(64, 2, 4, 4) + 1)  # BatchNorm's statistics are no identity
    return net


def test_everything_is_as_before_afterwards():
    net, x = network(), torch.randn(5, 2, 4, 4)
    net[1].eval()
    before, names = copy.deepcopy(net.state_dict()), [id(p) for p in net.parameters()]
    expected = net(x)
    with fake_quantized(net, {"0": Range.symmetric(0.1 * 127), "4": Range.symmetric(0.1 * 127)}):
        assert not torch.equal(net(x), expected)
        assert [id(p) for p in net.parameters()] == names
        assert list(net.state_dict()) == list(before)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            net(torch.zeros(1, 2, 9, 9))
    assert "forward" not in net[0].__dict__
    assert [m.training for m in net] == [True, False, True, True, True]
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_batchnorm_keeps_its_statistics_and_learns_its_scale():
    net, x = network(), torch.randn(5, 2, 4, 4)
    mean = net[1].running_mean.clone()
    with fake_quantized(net, {"0": Range.symmetric(0.05 * 127)}):
        net(x).square().sum().backward()
    assert torch.equal(net[1].running_mean, mean)
    assert net[1].weight.grad.abs().sum() > 0
    assert net[1].training


def test_folding_batchnorm_first_gives_the_same():
    net, x = network().eval(), torch.randn(5, 2, 4, 4)
    with torch.no_grad():
        net[1].weight[0] *= -3
        folded = torch.nn.utils.fusion.fuse_conv_bn_eval(net[0], net[1])
        with fake_quantized(net, {"0": Range.symmetric(0.02 * 127)}):
            ours = net[1](net[0](x))
        with fake_quantized(nn.Sequential(folded), {"0": Range.symmetric(0.02 * 127)}):
            torch.testing.assert_close(ours, folded(x), rtol=1e-4, atol=1e-5)


def test_a_layer_whose_own_forward_was_replaced():
    """As Conv2dSame does in a subclass, which pads before it convolves."""
    net = nn.Sequential(nn.Conv2d(2, 4, 1))
    net[0].__dict__["forward"] = lambda x: 2 * nn.functional.conv2d(x, net[0].weight)
    x, plain = torch.randn(3, 2, 4, 4), net[0].__dict__["forward"]
    w = net[0].weight.detach()
    with torch.no_grad(), fake_quantized(net, {"0": Range.symmetric(0.1 * 127)}):
        wq = on_grid(w, w.flatten(1).abs().amax(1).view(-1, 1, 1, 1) / 127)
        torch.testing.assert_close(net(x), 2 * nn.functional.conv2d(on_grid(x, 0.1), wq))
    assert net[0].__dict__["forward"] is plain


def test_a_compiled_network_follows():
    net, x = network().eval(), torch.randn(5, 2, 4, 4)
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        plain = compiled(x)
        with fake_quantized(net, {"0": Range.symmetric(0.3 * 127), "4": Range.symmetric(0.3 * 127)}):
            assert not torch.equal(compiled(x), plain)
            torch.testing.assert_close(compiled(x), net(x))
        torch.testing.assert_close(compiled(x), plain)
