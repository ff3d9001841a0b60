import copy
import functools

import gated
import pytest
import torch
from networks import BUILDERS, build, gates_at_inputs
from torch import nn
from torch.nn import functional as F

from hqp_lightning.core import fisher
from hqp_lightning.core.fisher import FisherState, compute, gate_fisher, merge, settled, weight_fisher
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import ChannelGroup, Consumer, Unit
from hqp_lightning.surgery import Shadow


def data(samples, dtype=torch.float64, size=32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 3, size, size, generator=generator).to(dtype)
    return x, torch.randint(0, 10, (samples,), generator=generator)


def loss_of(network, x, y, reduction="none"):
    return lambda: F.cross_entropy(network(x), y, reduction=reduction)


def reference_gates(network, groups, x, y):
    """Sum of squares of dL_n/dz by autograd through explicit masks, one sample at a time."""
    sums = {g.name: torch.zeros(g.gates, dtype=x.dtype) for g in groups}
    for n in range(len(x)):
        z = {g.name: torch.ones(g.gates, dtype=x.dtype, requires_grad=True) for g in groups}
        hooks = gates_at_inputs(network, {g.name: z[g.name].repeat(g.blocks) for g in groups}, groups)
        loss = F.cross_entropy(network(x[n : n + 1]), y[n : n + 1])
        for hook in hooks:
            hook.remove()
        for name, grad in zip(z, torch.autograd.grad(loss, list(z.values())), strict=True):
            sums[name] += grad.square()
    return sums


@pytest.mark.parametrize("name", BUILDERS)
def test_gate_fisher_is_that_of_an_explicit_mask_for_every_group(name):
    network = build(name)
    groups = Shadow(network, [torch.zeros(1, 3, 32, 32)]).groups()
    expected_groups = {"resnet18": 12, "mobilenet_v3_small": 27}
    assert len(groups) == expected_groups.get(name, len(groups)) > 0
    assert max(g.blocks for g in groups) == {"resnext": 4, "regnet": 4}.get(name, 1)
    network.double()
    x, y = data(5)
    state = gate_fisher(network, groups, loss_of(network, x, y))
    assert state.samples == 5
    for group, expected in reference_gates(network, groups, x, y).items():
        assert expected.max() > 0
        torch.testing.assert_close(state.sums[group], expected, rtol=1e-9, atol=1e-12 * float(expected.max()))


def test_gate_fisher_leaves_the_network_alone():
    network = build("mobilenet_v3_small")
    network.features[0].requires_grad_(False)
    frozen = {n: p.requires_grad for n, p in network.named_parameters()}
    before = {n: t.clone() for n, t in network.state_dict().items()}
    network.classifier[0].weight.grad = torch.full_like(network.classifier[0].weight, 3.0)
    groups = Shadow(network, [torch.zeros(1, 3, 32, 32)]).groups()
    x, y = data(1, torch.float32)
    gate_fisher(network, groups, loss_of(network, x, y))
    weight_fisher(network, ["classifier.0"], loss_of(network, x, y))
    assert {n: p.requires_grad for n, p in network.named_parameters()} == frozen
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert {n for n, p in network.named_parameters() if p.grad is not None} == {"classifier.0.weight"}
    assert (network.classifier[0].weight.grad == 3.0).all()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())


@pytest.mark.parametrize("samples", [1, 5])
def test_frozen_backbone_changes_nothing(samples):
    network = build("resnet18").double()
    groups = Shadow(network, [torch.zeros(1, 3, 32, 32)]).groups()
    x, y = data(samples)
    free = gate_fisher(network, groups, loss_of(network, x, y))
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    frozen = gate_fisher(network, groups, loss_of(network, x, y))
    assert all(torch.equal(free.sums[g.name], frozen.sums[g.name]) for g in groups)
    assert not any(p.requires_grad for p in network.parameters())


def test_mean_loss_equals_per_sample_losses():
    network = build("regnet").double()
    groups = Shadow(network, [torch.zeros(1, 3, 32, 32)]).groups()
    x, y = data(5)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    for estimate in (
        lambda reduction: gate_fisher(network, groups, loss_of(network, x, y, reduction)),
        lambda reduction: weight_fisher(network, names, loss_of(network, x, y, reduction)),
    ):
        mean, per_sample = estimate("mean"), estimate("none")
        assert mean.samples == per_sample.samples == 5
        for name, expected in per_sample.sums.items():
            torch.testing.assert_close(mean.sums[name], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_bfloat16_and_channels_last_are_close_to_float32(name):
    network = build(name)
    groups = Shadow(network, [torch.zeros(1, 3, 32, 32)]).groups()
    x, y = data(5, torch.float32)
    exact = gate_fisher(network, groups, loss_of(network, x, y)).sums
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = gate_fisher(network, groups, loss_of(network, x, y)).sums
    network.to(memory_format=torch.channels_last)
    last = gate_fisher(network, groups, loss_of(network, x.to(memory_format=torch.channels_last), y)).sums
    for group in groups:
        e, h = exact[group.name], half[group.name]
        assert e.dtype == h.dtype == torch.float32
        torch.testing.assert_close(last[group.name], e, rtol=1e-3, atol=1e-4 * float(e.max()))
        assert float((e - h).norm() / e.norm()) < 0.25
        assert float(torch.corrcoef(torch.stack([e, h]))[0, 1]) > 0.97


def pooled(head):
    """Gradients are shared out over 32x32 positions, and the head's weights are times ``head``."""
    torch.manual_seed(0)
    front = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*front, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()
    network[-1].weight.data.mul_(head)
    return network


def both_estimators(network, x, y, reduction="none"):
    groups, loss = Shadow(network, [x[:1]]).groups(), loss_of(network, x, y, reduction)
    return {**gate_fisher(network, groups, loss).sums, **weight_fisher(network, ["0", "2", "6"], loss).sums}


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("head", [1e-3, 1.0, 1e3])
def test_gradients_in_float16_neither_underflow_nor_overflow(head, reduction):
    network, (x, y) = pooled(head), data(8, torch.float32)
    exact = both_estimators(network, x, y, reduction)
    with torch.autocast("cpu", dtype=torch.float16):
        half = both_estimators(network, x, y, reduction)
    for name, e in exact.items():
        assert half[name].dtype == torch.float32
        assert float(e.norm()) > 0
        assert float((half[name] - e).norm() / e.norm()) < 0.02, name


def test_the_loss_scale_rounds_nothing(monkeypatch):
    network, (x, y) = build("mobilenet_v3_small"), data(3, torch.float32)
    groups = Shadow(network, [x[:1]]).groups()
    scaled = gate_fisher(network, groups, loss_of(network, x, y)).sums
    monkeypatch.setattr(fisher, "_LOSS_SCALES", (1.0,))
    plain = gate_fisher(network, groups, loss_of(network, x, y)).sums
    assert all(torch.equal(t, plain[n]) for n, t in scaled.items())


def test_a_layer_read_twice_adds_up_before_squaring():
    layer = nn.Linear(3, 1, bias=False).double()
    shared = nn.ModuleDict({"layer": layer})
    group = ChannelGroup("layer", 3, (Consumer("layer", (0, 1, 2), (0, 1, 2)),), (), 1.0)
    x = torch.randn(4, 3, dtype=torch.float64)
    state = gate_fisher(shared, [group], lambda: (layer(x) + layer(2 * x)).sum(1))
    expected = (3 * x * layer.weight.detach()).square().sum(0)
    torch.testing.assert_close(state.sums["layer"], expected)


LAYERS = {
    "plain": (nn.Conv2d(4, 6, 3), (9, 8)),
    "stride_padding": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (9, 8)),
    "dilation": (nn.Conv2d(4, 6, (3, 2), dilation=2, padding=(2, 1), bias=False), (9, 8)),
    "unused_border": (nn.Conv2d(4, 6, 2, stride=3), (10, 9)),
    "pointwise_stride": (nn.Conv2d(4, 6, 1, stride=2), (9, 8)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (9, 8)),
    "pointwise_groups": (nn.Conv2d(4, 6, 1, groups=2), (9, 8)),
    "depthwise": (nn.Conv2d(4, 4, 5, groups=4, padding=2, stride=2), (9, 8)),
    "depthwise_multiplier_dilation": (nn.Conv2d(4, 8, 3, groups=4, stride=2, dilation=2, bias=False), (11, 8)),
    "same_even_kernel": (nn.Conv2d(4, 6, (4, 3), padding="same"), (9, 8)),
    "same_depthwise": (nn.Conv2d(4, 4, 4, padding="same", groups=4), (9, 8)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (9, 8)),
    "circular_depthwise": (nn.Conv2d(4, 4, 3, padding=(1, 0), padding_mode="circular", groups=4), (9, 8)),
    "linear": (nn.Linear(8, 5), (8,)),
    "linear_tokens": (nn.Linear(8, 5), (4, 3, 8)),
    "linear_no_bias": (nn.Linear(8, 5, bias=False), (7, 8)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_weight_fisher_equals_a_loop_over_samples(kind, channels_last):
    layer, size = LAYERS[kind]
    network = nn.Sequential(layer, nn.ReLU(inplace=True)).double()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, *((4, *size) if isinstance(layer, nn.Conv2d) else size), generator=generator).double()
    if channels_last and x.dim() == 4:
        x, network = x.to(memory_format=torch.channels_last), network.to(memory_format=torch.channels_last)

    def loss(samples):
        out = network(samples)
        return (out.flatten(1) * torch.linspace(-1, 2, out[0].numel(), dtype=out.dtype)).sum(1).sin()

    state = weight_fisher(network, ["0"], lambda: loss(x))
    expected = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    for n in range(len(x)):
        grads = torch.autograd.grad(loss(x[n : n + 1]).sum(), list(network.parameters()))
        for name, grad in zip(expected, grads, strict=True):
            expected[name] += grad.square()
    assert state.samples == 5
    assert set(state.sums) == set(expected)
    for name, value in expected.items():
        assert value.max() > 0
        torch.testing.assert_close(state.sums[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "resnext", "convnext"])
def test_weight_fisher_of_whole_networks(name):
    network = build(name).double()
    x, y = data(2)
    names = [n for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    state = weight_fisher(network, names, loss_of(network, x, y))
    keys = [k for n in names for k in (f"{n}.weight", f"{n}.bias") if k in dict(network.named_parameters())]
    assert set(state.sums) == set(keys)
    expected = dict.fromkeys(keys, 0.0)
    for n in range(2):
        loss = F.cross_entropy(network(x[n : n + 1]), y[n : n + 1])
        for key, grad in zip(keys, torch.autograd.grad(loss, [network.get_parameter(k) for k in keys]), strict=True):
            expected[key] = expected[key] + grad.square()
    for key in keys:
        torch.testing.assert_close(state.sums[key], expected[key], rtol=1e-8, atol=1e-11 * float(expected[key].max()))


@pytest.mark.parametrize("estimator", ["gate", "weight"])
def test_batches_merge_to_one_big_batch(estimator):
    network = build("regnet").double()
    groups = Shadow(network, [torch.zeros(1, 3, 32, 32)]).groups()
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    x, y = data(5)

    def fisher(part):
        loss = loss_of(network, x[part], y[part])
        return gate_fisher(network, groups, loss) if estimator == "gate" else weight_fisher(network, names, loss)

    whole = fisher(slice(0, 5))
    parts = merge(FisherState(), merge(fisher(slice(0, 2)), fisher(slice(2, 5))))
    assert parts.samples == whole.samples == 5
    for name, value in compute(whole).items():
        torch.testing.assert_close(compute(parts)[name], value, rtol=1e-9, atol=0)
        torch.testing.assert_close(value, whole.sums[name] / 5)


def test_state_is_one_float_per_channel_or_weight():
    network = build("resnet18")
    groups = Shadow(network, [torch.zeros(1, 3, 32, 32)]).groups()
    x, y = data(5, torch.float32)
    gate = gate_fisher(network, groups, loss_of(network, x, y))
    weight = weight_fisher(network, ["layer1.0.conv1"], loss_of(network, x, y))
    assert {n: (t.numel(), t.dtype) for n, t in gate.sums.items()} == {
        g.name: (g.channels, torch.float32) for g in groups
    }
    assert {n: t.shape for n, t in weight.sums.items()} == {"layer1.0.conv1.weight": (64, 64, 3, 3)}


def test_what_can_not_be_estimated_is_refused_with_evidence():
    network = build("vgg")
    groups = Shadow(network, [torch.zeros(1, 3, 32, 32)]).groups()
    x, y = data(4, torch.float32)
    with pytest.raises(ConfigurationError, match=r"shape \(4, 10\).*per-sample losses"):
        gate_fisher(network, groups, lambda: network(x))
    with pytest.raises(ConfigurationError, match="sees 4 samples, but the loss is of 1"):
        gate_fisher(network, groups, lambda: F.cross_entropy(network(x), y).view(1))
    assert all(p.requires_grad for p in network.parameters())
    layer = nn.Linear(3, 3)
    with pytest.raises(ConfigurationError, match="'0' runs twice"):
        weight_fisher(nn.Sequential(layer), ["0"], lambda: layer(layer(torch.randn(2, 3))).sum(1))
    with pytest.raises(ConfigurationError, match="not ConvTranspose2d"):
        weight_fisher(nn.Sequential(up := nn.ConvTranspose2d(3, 3, 2)), ["0"], lambda: up(x).flatten(1).sum(1))


def test_no_groups_give_an_empty_state():
    network = build("vgg")
    x, y = data(2, torch.float32)
    assert gate_fisher(network, [], loss_of(network, x, y)).sums == {}


def masked_squares(network, unit, x, y, mean=None):
    """Σ (dL_n/dz)² by autograd, one sample at a time: z on what a unit does beyond its replacement."""
    masked, total = copy.deepcopy(network), 0.0
    module = masked.get_submodule(unit.name)
    for n in range(len(x)):
        z = torch.ones((), dtype=torch.float64, requires_grad=True)
        if unit.kind == "gate":
            module.forward = lambda x, z=z: x * (mean.view(-1, 1, 1) + z * (module.scale(x) - mean.view(-1, 1, 1)))
        else:
            module.forward = lambda x, z=z: x + z * module.body(x)
        (grad,) = torch.autograd.grad(F.cross_entropy(masked(x[n : n + 1]), y[n : n + 1]), [z])
        total += float(grad.square())
    return torch.tensor([total], dtype=torch.float64)


def mean_factors(network, gate, x):
    """Over the samples in which a channel is not zero: in others it has no factor."""
    module, given = network.get_submodule(gate), []
    handle = module.register_forward_hook(lambda _, args, __: given.append(args[0].detach()))
    network(x)
    handle.remove()
    alive = given[0].abs().amax((2, 3)) > 0
    return (module.scale(given[0]).detach()[..., 0, 0] * alive).sum(0) / alive.sum(0).clamp(min=1)


def gated_batches():
    """Three batches that are darker and darker: a gate's factors in the first one say little of the others'."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(7, 1, 8, 8, generator=generator, dtype=torch.float64)
    x *= torch.linspace(4, 0.2, 7, dtype=torch.float64).view(-1, 1, 1, 1)
    return x, torch.tensor([1, 0, 7, 3, 2, 2, 9]), (slice(0, 2), slice(2, 3), slice(3, 7))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_units_value_is_that_of_a_mask_on_what_it_does_beyond_its_replacement(reduction):
    """Of a gate z on the factors' deviation from their mean over all batches, of a block on its residual part."""
    network = gated.drawn()
    shadow = Shadow(network, [torch.zeros(2, 1, 8, 8)])
    network.double()
    x, y, batches = gated_batches()
    losses = [loss_of(network, x[b], y[b], reduction) for b in batches]
    states = [gate_fisher(network, shadow.groups(), loss, shadow.units()) for loss in losses]
    alone = [gate_fisher(network, shadow.groups(), loss) for loss in losses]
    for state, other in zip(states, alone, strict=True):
        assert all(torch.equal(state.sums[n], f) for n, f in other.sums.items())
    found = compute(functools.reduce(merge, states))
    assert set(found) - set(alone[0].sums) == set(gated.UNITS)
    for unit in shadow.units():
        mean = mean_factors(network, unit.name, x) if unit.kind == "gate" else None
        expected = masked_squares(network, unit, x, y, mean) / len(x)
        torch.testing.assert_close(found[unit.key], expected, rtol=1e-4, atol=0)  # a mean is float32
        assert expected > 0
        if unit.kind == "gate":  # of the first batch it would be another value
            first = masked_squares(network, unit, x, y, mean_factors(network, unit.name, x[batches[0]])) / len(x)
            assert abs(first / expected - 1) > 0.01


def test_gates_merge_over_batches_and_ranks_in_bounded_memory():
    """Two accumulators, of which each has more samples than a gate has channels, are one, as two ranks' sums are."""
    network = gated.drawn()
    units = [u for u in Shadow(network, [torch.zeros(2, 1, 8, 8)]).units() if u.kind == "gate"]
    network.double()
    x, y = torch.rand(90, 1, 8, 8, dtype=torch.float64) * torch.linspace(4, 0.2, 90).view(-1, 1, 1, 1), torch.arange(90)
    states = [gate_fisher(network, [], loss_of(network, x[i::9], y[i::9] % 10), units) for i in range(9)]
    whole = gate_fisher(network, [], loss_of(network, x, y % 10), units)
    a, b = functools.reduce(merge, states[:5]), functools.reduce(merge, states[5:])
    assert all(len(g.rows) <= 34 for g in a.gates.values())
    merged = compute(merge(a, b))
    pooled = [
        iter(torch.stack(pair).sum(0) for pair in zip(gate_factors(a), gate_factors(b), strict=True)) for _ in "ab"
    ]
    left, right = (settled(s, lambda _, p=p: next(p)) for s, p in zip((a, b), pooled, strict=True))
    for unit in units:
        torch.testing.assert_close(merged[unit.key], compute(whole)[unit.key], rtol=1e-6, atol=0)
        ranks = (left.sums[unit.key] + right.sums[unit.key]) / 90
        torch.testing.assert_close(ranks, compute(whole)[unit.key], rtol=1e-6, atol=0)


def gate_factors(state):
    """In the order in which ranks pool them."""
    return [t for g in state.gates.values() for t in (g.factors.total, g.factors.count)]


def test_a_units_value_is_taken_before_what_comes_next_works_in_place():
    torch.manual_seed(0)
    block = gated.Block(16, last=True)
    network = nn.Sequential(nn.Conv2d(1, 16, 1), block, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    unit, x, y = Unit("1.body.5", "gate", 1.0), torch.rand(3, 1, 4, 4), torch.tensor([1, 0, 7])
    expected = compute(gate_fisher(network, [], loss_of(network, x, y), [unit]))
    block.forward = lambda x: block.body(x).add_(x)  # as ResNets do
    found = compute(gate_fisher(network, [], loss_of(network, x, y), [unit]))
    torch.testing.assert_close(found["gate:1.body.5"], expected["gate:1.body.5"])
    assert found["gate:1.body.5"] > 0
