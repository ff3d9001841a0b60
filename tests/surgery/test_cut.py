import copy

import pytest
import torch
from networks import BUILDERS, build, gates_at_inputs
from surgery_samples import plan, some_channels
from torch import nn
from torch.nn import functional as F

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import SurgeryError
from hqp_lightning.surgery import Cut, Shadow, apply_cut_, slice_optimizers_


def kept_slices(before, cut):
    """The surviving values by numpy's flat indexing."""
    return {n: torch.from_numpy(t.detach().numpy().ravel()[cut.kept[n].numpy()]) for n, t in before.items()}


class NormOfKept(nn.Module):
    """LayerNorm with the statistics of the kept channels only: a cut changes what a LayerNorm normalises by."""

    def __init__(self, norm, mask, channel_dim):
        super().__init__()
        self.norm, self.dim = norm, channel_dim
        self.mask = mask

    def forward(self, x):
        x, mask = x.movedim(self.dim, -1), self.mask
        mean = (x * mask).sum(-1, keepdim=True) / mask.sum()
        variance = ((x - mean).square() * mask).sum(-1, keepdim=True) / mask.sum()
        x = (x - mean) / (variance + self.norm.eps).sqrt() * self.norm.weight + self.norm.bias
        return x.movedim(-1, self.dim)


def normalise_by_kept_(network, masks):
    by_width = {16: masks["features.0.0"], 32: masks["features.2.1"]}
    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, nn.LayerNorm):
                dim = 1 if type(norm).__name__ == "LayerNorm2d" else -1
                setattr(parent, name, NormOfKept(norm, by_width[norm.normalized_shape[0]], dim))


@pytest.mark.parametrize("name", BUILDERS)
def test_a_cut_equals_the_dense_network_with_masks(name):
    network = build(name).double()
    dense = copy.deepcopy(network)
    groups, removed, cut = plan(network)
    assert all(removed.values())
    apply_cut_(network, cut)
    masks = {g.name: torch.ones(g.channels, dtype=torch.float64) for g in groups}
    for group, channels in removed.items():
        masks[group][list(channels)] = 0.0
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    before = dense(x)
    gates_at_inputs(dense, masks, groups)
    if name == "convnext":
        normalise_by_kept_(dense, masks)
    expected = dense(x)
    assert (expected - before).abs().max() > 1e-3  # the masks matter
    torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in network.parameters()) == cut.params < sum(p.numel() for p in dense.parameters())


def test_parameters_keep_identity_flags_and_memory_format():
    network = build("mobilenet_v3_small").to(memory_format=torch.channels_last)
    network.features[0].requires_grad_(False)
    held = dict(network.named_parameters())
    flags = {n: p.requires_grad for n, p in held.items()}
    network.train()
    F.cross_entropy(network(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    cut = plan(network)[2]
    apply_cut_(network, cut)
    for name, parameter in network.named_parameters():
        assert parameter is held[name]
        assert parameter.requires_grad == flags[name]
        assert parameter.grad is None or parameter.grad.shape == parameter.shape
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
    assert network.training
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-4),
    "adam": lambda p: torch.optim.Adam(p, 1e-3, amsgrad=True),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, 1e-3, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_state_is_sliced_like_its_parameters_and_goes_on(kind):
    network = build("mobilenet_v3_small").train()
    decayed = [p for p in network.parameters() if p.dim() > 1]
    other = [p for p in network.parameters() if p.dim() == 1]
    optimizer = OPTIMIZERS[kind]([{"params": decayed}, {"params": other, "weight_decay": 0.0}])
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])

    def train():
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    train()
    names = {n: p for n, p in network.named_parameters()}
    tensors = {**{n: p.detach().clone() for n, p in names.items()}}
    states = {
        n: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in optimizer.state[p].items()}
        for n, p in names.items()
    }
    cut = plan(network)[2]
    apply_cut_(network, cut)
    slice_optimizers_([optimizer], network, cut)
    expected = kept_slices(tensors, cut)
    for name, p in network.named_parameters():
        assert torch.equal(p, expected[name])
        sliced = 0
        for key, old in states[name].items():
            new = optimizer.state[p][key]
            if isinstance(old, torch.Tensor) and old.shape == tensors[name].shape and old.dim():
                assert torch.equal(new, torch.from_numpy(old.numpy().ravel()[cut.kept[name].numpy()]))
                sliced += 1
            else:
                assert new == old  # a step counter
        assert sliced == {"sgd": 1, "adam": 3, "rmsprop": 3}.get(kind, 2)
    moved = network.features[0][0].weight.detach().clone()
    train()
    assert not torch.equal(network.features[0][0].weight, moved)


def test_the_next_step_equals_that_of_an_optimizer_over_the_sliced_parameters():
    network = build("resnext")
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    cut = plan(network)[2]
    old = {
        n: (p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()) for n, p in network.named_parameters()
    }
    apply_cut_(network, cut)
    slice_optimizers_([optimizer], network, cut)
    grads = {n: torch.randn_like(p) for n, p in network.named_parameters()}
    for n, p in network.named_parameters():
        p.grad = grads[n].clone()
    optimizer.step()
    for n, p in network.named_parameters():
        value, momentum = (t.flatten()[cut.kept[n]] for t in old[n])
        torch.testing.assert_close(p.detach(), value - 0.1 * (0.9 * momentum + grads[n]))


class BlockScales(torch.optim.SGD):
    """Keeps one scale per block of a parameter, as 8-bit optimizers do."""

    def step(self, closure=None):
        super().step(closure)
        for p in self.state:
            self.state[p]["absmax"] = torch.ones(3)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (torch.optim.Adafactor, "row_var"),
        (torch.optim.LBFGS, "d"),
        (lambda p: BlockScales(p, 0.1, momentum=0.9), "absmax"),
    ],
)
def test_state_of_another_shape_is_refused(make, key):
    network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    optimizer, x = make(network.parameters()), torch.randn(3, 8)

    def closure():
        optimizer.zero_grad()
        loss = network(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    cut = plan(network, example=torch.zeros(2, 8))[2]
    apply_cut_(network, cut)
    with pytest.raises(SurgeryError, match=f"{type(optimizer).__name__} keeps '{key}'"):
        slice_optimizers_([optimizer], network, cut)


def test_an_empty_cut_changes_nothing():
    network = build("regnet")
    groups, _, cut = plan(network, fraction=0.0)
    assert isinstance(cut, Cut)
    assert groups
    before = {n: t.clone() for n, t in network.state_dict().items()}
    apply_cut_(network, cut)
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_a_graph_that_somebody_keeps_does_not_hold_the_old_shapes():
    network = build("vgg")
    kept = network(torch.rand(2, 3, 32, 32))  # as a module does with self.last_logits
    _, _, cut = plan(network)
    apply_cut_(network, cut)
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    assert kept.grad_fn is not None
    assert all(p.grad.shape == p.shape for p in network.parameters())


class ByName(nn.Module):
    """Called as Hugging Face's are."""

    def __init__(self):
        super().__init__()
        self.net = build("vgg")

    def forward(self, *, pixels, flip=False):
        return self.net(pixels.flip(-1) if flip else pixels)


def test_a_network_called_by_name_is_traced_and_cut_as_one_called_by_place():
    network, x = ByName(), torch.rand(2, 3, 32, 32)
    shadow = Shadow(network, Call((), {"pixels": x, "flip": True}))
    plain = Shadow(network.net, [x])
    groups = shadow.groups()
    assert [g.name for g in groups] == [f"net.{g.name}" for g in plain.groups()]
    removed = some_channels(groups)
    cut = shadow.cut(removed)
    expected = plain.cut({n.removeprefix("net."): c for n, c in removed.items()})
    assert (shadow.macs, cut.macs) == (plain.macs, expected.macs)
    for name, index in cut.kept.items():
        assert torch.equal(index, expected.kept[name.removeprefix("net.")])
