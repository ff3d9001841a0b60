import copy

import pytest
import torch
from networks import BUILDERS, build
from surgery_samples import plan
from torch import nn

from hqp_lightning.core.compensation import STRENGTHS
from hqp_lightning.surgery import Cut, Shadow, apply_cut_, compensation, record
from hqp_lightning.surgery import readers as reading
from hqp_lightning.surgery.compensation import add_, collecting, parts
from hqp_lightning.surgery.readers import readers, rows_of


def compensated(network, cut, batches, strengths=STRENGTHS):
    """A cut copy, and what its tensors gained."""
    gained, twin = {}, copy.deepcopy(network)
    for part in parts(readers(network, cut)):
        with collecting(network, part) as seen:
            for x in batches:
                seen.run((x,))
        gained |= seen.solve(strengths)
    apply_cut_(twin, cut)
    plain = copy.deepcopy(twin)
    add_(twin, gained)
    return twin, plain, gained


def cut_of(network, x, removed):
    return Shadow(network, [x]).cut(removed)


def images(n=48, seed=0, size=8):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) + 0.5


LAYERS = {
    "conv": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), (4, 6, 9, 7)),
    "oblong": (lambda: nn.Conv2d(6, 8, (1, 5), padding=(0, 2), dilation=(1, 2), bias=False), (4, 6, 9, 12)),
    "same": (lambda: nn.Conv2d(6, 8, (3, 5), padding="same", dilation=2), (4, 6, 9, 7)),
    "reflect": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (4, 6, 9, 7)),
    "grouped": (lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2), (4, 6, 9, 7)),
    "no_batch": (lambda: nn.Conv2d(6, 8, 3), (6, 9, 7)),
    "pointwise": (lambda: nn.Conv2d(6, 8, 1), (4, 6, 1, 1)),
    "linear": (lambda: nn.Linear(6, 8), (4, 6)),
    "tokens": (lambda: nn.Linear(6, 8), (4, 3, 5, 6)),
    "pointwise_1d": (lambda: nn.Conv1d(6, 8, 1), (4, 6, 9)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_and_weights_make_the_outputs_of_the_layer(kind):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    groups = getattr(layer, "groups", 1)
    kept_inputs = [0, 2] if groups == 2 else [0, 2, 3, 5]
    index = torch.arange(layer.weight.numel()).view(layer.weight.shape)[:, kept_inputs]
    (reader,) = readers(layer, Cut({"weight": index}, record(layer), 0.0, 0))
    ((kept, lost),) = rows_of(layer, reader, x, positions=10**6, seed=0, most=10**9)
    blocks, columns, outputs = reader.sizes
    smaller = layer.weight.detach().flatten()[index]
    by_offset = smaller if smaller.dim() == 2 else smaller.flatten(2).mT  # an offset's inputs beside each other
    mine = kept @ by_offset.reshape(blocks, -1, columns).mT + lost
    mine = mine.transpose(0, 1).flatten(1) + (0 if layer.bias is None else layer.bias)
    out = layer(x)
    out = out if not isinstance(layer, nn.Linear) else out.reshape(-1, 8)[..., None]
    out = out if out.dim() > 2 and kind != "no_batch" else out[None]
    out = out.flatten(2).mT.reshape(-1, 8)
    in_order = [sorted(map(tuple, rows.detach().tolist())) for rows in (mine, out)]  # positions come shuffled
    torch.testing.assert_close(*map(torch.tensor, in_order))
    assert torch.equal(reader.as_weight(by_offset.reshape(blocks, outputs, columns)), smaller)


@pytest.mark.parametrize("name", [*(n for n in BUILDERS if n not in ("resnet18", "resnext")), "two_heads"])
def test_the_readers_are_those_of_the_graph_and_nothing_else_changes(name):
    network = build(name)
    groups, removed, cut = plan(network)
    found = readers(network, cut)
    named = {c.module for g in groups if removed[g.name] for c in g.consumers}
    assert {r.name for r in found} == named
    before = {n: t.clone() for n, t in network.state_dict().items()}
    x = torch.randn(4, 3, 32, 32)
    twin, plain, gained = compensated(network, cut, [x], strengths=[0.1])
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    changed = {
        n for n, t in twin.state_dict().items() if not torch.equal(t, plain.state_dict()[n]) and "tracked" not in n
    }
    assert changed <= set(gained)
    assert {n.removesuffix(".weight") for n in gained if n.endswith(".weight")} == named
    assert twin(x) is not None


def doubled(norm, bias, activation=True):
    """Channels 0 to 3 of the first convolution are there twice, once for each reader of the second."""
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(8), nn.ReLU()] if norm else [nn.ReLU()] if activation else []
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=bias), *middle, nn.Flatten(),
        nn.Linear(8 * 64, 5),
    )  # fmt: skip
    with torch.no_grad():
        network[0].weight[4:] = 2 * network[0].weight[:4]
        network[0].bias[4:] = 2 * network[0].bias[:4]
        for m in network:
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize(("norm", "bias"), [(True, False), (True, True), (False, False), (False, True)])
@pytest.mark.parametrize("widest", [4608, 0])
def test_a_duplicated_channel_costs_nothing(norm, bias, widest, monkeypatch):
    monkeypatch.setattr(reading, "WIDEST", widest)  # the second time one regression serves all offsets
    network, x = doubled(norm, bias), images()
    cut = cut_of(network, x[:2], {"0": (4, 5, 6, 7)})
    twin, plain, gained = compensated(network, cut, [x], strengths=[1e-6])
    new = images(seed=1)
    damage = (plain(new) - network(new)).abs().max()
    assert (twin(new) - network(new)).abs().max() < 1e-3 * damage
    assert set(gained) == {"2.weight", *(["2.bias"] if bias else ["3.running_mean"] if norm else [])}


def test_a_flattened_map_has_several_inputs_a_channel():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 5))
    with torch.no_grad():
        network[0].weight[4:], network[0].bias[4:] = network[0].weight[:4], network[0].bias[:4]
    x = images(200)
    twin, plain, _ = compensated(network, cut_of(network, x[:2], {"0": (5, 6, 7)}), [x], strengths=[1e-6])
    assert (twin(x) - network(x)).abs().max() < 1e-2 * (plain(x) - network(x)).abs().max()


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_on_the_calibration_data_the_error_is_never_above_the_plain_cuts(norm, bias):
    torch.manual_seed(1)
    network = doubled(norm, bias)
    nn.init.normal_(network[0].weight)  # no longer doubled
    x = images(64)
    cut = cut_of(network, x[:2], {"0": (1, 4, 5, 6, 7)})
    seen = x[:48]  # a quarter is held back
    for strength in STRENGTHS:
        twin, plain, _ = compensated(network, cut, [x], strengths=[strength])
        with torch.no_grad():
            errors = []
            for model in (twin, plain):
                shift = model[3].running_mean - network[3].running_mean if norm and not bias else torch.zeros(8)
                left = model[:3](seen) - shift[:, None, None] - network[:3](seen)
                errors.append(float(left.square().sum()))
        assert errors[0] < errors[1]


def test_the_mean_goes_into_a_bias_or_a_batchnorm_but_not_through_an_activation():
    x = images()
    for layers, homes in {
        "norm": ([nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)], {"2.weight", "3.running_mean"}),
        "relu": ([nn.Conv2d(8, 8, 1, bias=False), nn.ReLU(), nn.BatchNorm2d(8)], {"2.weight"}),
        "batch": ([nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8, track_running_stats=False)], {"2.weight"}),
    }.values():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), *layers, nn.Flatten(), nn.Linear(512, 3)).eval()
        gained = compensated(network, cut_of(network, x[:2], {"0": (0, 1, 2, 3)}), [x])[2]
        assert set(gained) == homes


class Twice(nn.Module):
    """One convolution, called twice: on what it should see, and on twice that."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, bias=False)
        self.norm, self.other, self.head = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).relu()
        return self.head((self.norm(self.shared(x)) + self.other(self.shared(-2 * x))).mean((2, 3)))


def test_a_layer_that_is_called_twice_is_fitted_to_both_and_shifts_no_batchnorm():
    network, x = Twice().eval(), images()
    cut = cut_of(network, x[:2], {"first": (0, 1, 2, 3)})
    with collecting(network, [r for r in readers(network, cut) if r.name == "shared"]) as seen:
        seen.run((x,))
    assert seen.moments["shared"].count == 2 * 36 * 64
    assert set(seen.solve()) == {"shared.weight"}


def test_weights_of_several_layers_and_layers_of_ones_own_are_left_alone():
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).tanh()

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Own(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    network[2].weight = network[3].weight
    x = images()
    index = torch.arange(64).view(8, 8, 1, 1)[:, :4]
    cut = Cut({"2.weight": index, "3.weight": index}, record(network), 0.0, 0)
    assert readers(network, cut) == []
    network[2].weight = nn.Parameter(network[2].weight.clone())
    assert [r.name for r in readers(network, cut)] == ["3"]
    assert network(x).shape[1] == 4


def test_flags_gradients_and_formats_are_as_before():
    network = build("mobilenet_v3_small").to(memory_format=torch.channels_last).train()
    network.features[3].eval()
    network.features[5].requires_grad_(False)
    held, modes = dict(network.named_parameters()), [m.training for m in network.modules()]
    flags = {n: p.requires_grad for n, p in held.items()}
    cut = plan(network)[2]
    gained = {}
    for part in parts(readers(network, cut)):
        with collecting(network, part) as seen:
            seen.run((torch.randn(4, 3, 32, 32),))
        gained |= seen.solve([0.1])
    apply_cut_(network, cut)
    add_(network, gained)
    assert [m.training for m in network.modules()] == modes
    for name, p in network.named_parameters():
        assert p is held[name]
        assert p.requires_grad == flags[name]
        assert p.grad is None
        assert p.grad_fn is None
        assert p.dim() != 4 or p.is_contiguous(memory_format=torch.channels_last)
    assert any(n.startswith("features.5.") for n in gained)  # frozen readers of what was cut must follow, too


def test_broken_images_and_half_precision():
    network, x = doubled(norm=True, bias=False), images(64)
    cut = cut_of(network, x[:2], {"0": (4, 5, 6, 7)})
    twin, plain, _ = compensated(network, cut, [x])
    broken = x.clone()
    broken[3] = float("nan")
    other = compensated(network, cut, [broken])[0]
    assert all(bool(t.isfinite().all()) for t in other.state_dict().values())
    damage = (plain(x) - network(x)).abs().mean()
    assert (other(x) - network(x)).abs().mean() < 0.2 * damage
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = compensated(network, cut, [x])[0]
    assert mixed[2].weight.dtype == torch.float32
    assert (mixed(x) - network(x)).abs().mean() < 0.2 * damage
    half, gained = compensated(copy.deepcopy(network).bfloat16(), cut, [x.bfloat16()])[::2]
    assert half[2].weight.dtype == torch.bfloat16
    assert gained["2.weight"].dtype == torch.float32
    assert (half.float()(x) - network(x)).abs().mean() < 0.2 * damage


def test_memory_is_bounded_by_parts():
    network = build("resnet18")
    found = readers(network, plan(network)[2])
    made = parts(found, most=32 << 20)
    assert [r.name for part in made for r in part] == [r.name for r in found]
    assert len(made) > 1
    for part in made:
        with collecting(network, part) as seen:
            held = [*seen.moments.values(), *seen.held.values()]
            size = sum(t.nbytes for h in held for t in vars(h).values() if isinstance(t, torch.Tensor))
            assert size < 1.1 * (32 << 20) or len(part) == 1
    assert compensation.parts([]) == []
