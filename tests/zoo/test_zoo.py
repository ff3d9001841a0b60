"""Published classifiers as they are: prune, train a step, roll back, prune again, export; at 32 px, random weights."""

import copy

import pytest
import torch
from networks import gates_at_inputs
from published import NAMES, build
from torch import nn
from torch.nn import functional as F
from torchvision import models

from hqp_lightning.export import export_onnx
from hqp_lightning.surgery import (
    Shadow,
    apply_cut_,
    apply_structure_,
    layer_macs,
    record,
    restore_,
    slice_optimizers_,
    take,
)

PX = 32


def some_channels(groups, fraction, seed):
    """Random gates of every group, with all the channels tied to them."""
    generator = torch.Generator().manual_seed(seed)
    removed = {}
    for g in groups:
        gates = torch.randperm(g.gates, generator=generator)[: int(g.gates * fraction)].tolist()
        if gates:
            removed[g.name] = tuple(sorted(k + b * g.gates for k in gates for b in range(g.blocks)))
    return removed


def prune_(network, optimizer, seed, example):
    shadow = Shadow(network, [example])
    groups = shadow.groups()
    removed = some_channels(groups, 0.25, seed)
    cut = shadow.cut(removed)
    apply_cut_(network, cut)
    slice_optimizers_([optimizer], network, cut)
    return groups, removed, cut


STAGES = {
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features.7"],
    "efficientnet_b0": [f"features.{i}" for i in range(1, 8)],
    "regnet_y_400mf": [f"trunk_output.block{i}" for i in range(1, 5)],
    "regnet_x_400mf": [f"trunk_output.block{i}" for i in range(1, 5)],
    "timm_efficientnet_lite0": [f"blocks.{i}" for i in range(7)],
    "timm_repvgg_a0": [f"stages.{i}" for i in range(4)],
}


def shallow(name):
    """As published, but two blocks of the equal ones of a stage: tests/zoo/test_many.py has deep networks."""
    network = build(name)
    for stage in STAGES.get(name, ()):
        parent, _, key = stage.rpartition(".")
        setattr(network.get_submodule(parent), key, nn.Sequential(*list(network.get_submodule(stage))[:2]))
    return network


def train_(network, optimizer, x):
    network.train()
    optimizer.zero_grad()
    F.cross_entropy(network(x), torch.arange(len(x)) % 10).backward()
    optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_prune_train_roll_back_export(name, tmp_path):
    # Trained on one position, random weights end in NaN, or where rounding alone moves the logits by a percent.
    px = 2 * PX if name.startswith("regnet") or "efficientnet_lite" in name else PX
    network, x = shallow(name), torch.randn(4, 3, px, px)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    train_(network, optimizer, x)
    dense, structure = copy.deepcopy(network).eval(), record(network)
    momentum = {n: optimizer.state[p]["momentum_buffer"].clone() for n, p in network.named_parameters()}
    before = {n: t.clone() for n, t in network.state_dict().items()}
    undo = take(network, [optimizer])

    groups, removed, cut = prune_(network, optimizer, 1, x)
    assert len(removed) >= 0.8 * len(groups) > 0
    assert cut.macs < 0.8 * sum(layer_macs(dense, [x])[0].values())
    assert cut.params == sum(p.numel() for p in network.parameters())
    if "convnext" not in name:  # a LayerNorm normalises by the channels that are left
        with torch.no_grad():
            pruned = network.double().eval()(x.double())
            masks = {g.name: torch.ones(g.channels, dtype=torch.float64) for g in groups}
            for group, channels in removed.items():
                masks[group][list(channels)] = 0.0
            masked = copy.deepcopy(dense).double()
            gates_at_inputs(masked, masks, groups)
            torch.testing.assert_close(pruned, masked(x.double()), rtol=1e-6, atol=1e-6)
            network.float()

    train_(network, optimizer, x)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in network.parameters())
    restore_(undo, network, [optimizer])
    assert record(network) == structure
    for n, t in network.state_dict().items():
        assert torch.equal(t, before[n]), n
    for n, p in network.named_parameters():
        assert torch.equal(optimizer.state[p]["momentum_buffer"], momentum[n]), n
    assert torch.equal(network.eval()(x), dense(x))

    prune_(network, optimizer, 2, x)
    fresh = shallow(name)
    apply_structure_(fresh, record(network))
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh.eval()(x), network.eval()(x))
    artifact = export_onnx(network, x[:1], tmp_path / "model.onnx")  # compares onnxruntime with the network
    assert artifact.file_bytes < 1.1 * 4 * sum(p.numel() for p in network.parameters()) + 2e6


@pytest.mark.slow
def test_what_the_training_heads_of_googlenet_read_stays_and_the_rest_is_pruned():
    network, x = models.googlenet(num_classes=10, init_weights=False).eval(), torch.randn(2, 3, PX, PX)
    shadow = Shadow(network, [x])
    assert {n.group.partition(".")[0] for n in shadow.notes} == {"inception4a", "inception4d"}
    assert all("in training mode, where it worked before" in n.reason for n in shadow.notes)
    apply_cut_(network, shadow.cut(some_channels(shadow.groups(), 0.25, 0)))
    assert [o.shape for o in network.train()(x)] == [(2, 10)] * 3


class TwoHeads(nn.Module):
    """A shared backbone with a convolutional and a linear head."""

    def __init__(self, *heads):
        super().__init__()
        self.body = models.resnet18()
        self.body.fc = nn.Identity()
        self.linear, self.conv = nn.Linear(512, 10), nn.Conv2d(512, 5, 1)
        self.heads = heads

    def forward(self, x):
        features = self.body(x)
        heads = {"linear": self.linear, "conv": lambda f: self.conv(f[..., None, None]).flatten(1)}
        out = [heads[h](features) for h in self.heads]
        return out[0] if len(out) == 1 else tuple(out)


@pytest.mark.parametrize("heads", [("linear",), ("conv",), ("linear", "conv")])
def test_heads_keep_their_outputs(heads, tmp_path):
    network, x = TwoHeads(*heads), torch.randn(2, 3, PX, PX)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    shapes = [o.shape for o in ([network(x)] if len(heads) == 1 else network(x))]
    groups, removed, _ = prune_(network, optimizer, 0, x)
    assert not {"linear", "conv"} & set(removed)
    assert [o.shape for o in ([network(x)] if len(heads) == 1 else network(x))] == shapes
    assert network.body.layer4[1].conv2.out_channels == 384
    assert network.linear.in_features == (384 if "linear" in heads else 512)
    assert network.conv.in_channels == (384 if "conv" in heads else 512)
    if len(heads) == 1:
        export_onnx(network, x[:1], tmp_path / "model.onnx")  # compares onnxruntime with the network
