"""Units are found by what they do, and what is left without them is the network with them replaced by hand."""

import copy

import onnx
import pytest
import sessions
import timm
import torch
from gated import BRANCHES, GATES, UNITS, Block, Gate, drawn, gated_net
from surgery_samples import some_channels
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import BasicBlock, ResNet
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.regnet import BlockParams, RegNet

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import SurgeryError
from hqp_lightning.export import export_onnx
from hqp_lightning.surgery import Shadow, Structure, apply_cut_, apply_structure_, layer_macs, record, restore_, take
from hqp_lightning.surgery.folding import plan, remove_
from hqp_lightning.surgery.means import watching
from hqp_lightning.surgery.proof import Proof
from hqp_lightning.surgery.replaced import put_back_
from hqp_lightning.surgery.units import find

EXAMPLE = torch.rand(2, 1, 8, 8)


@pytest.fixture(scope="module")
def shadow():
    return Shadow(drawn(), [EXAMPLE])


def removed_live(network, removals, x):
    """The units go, with the means of ``x``."""
    with watching(network, [r.unit.name for r in removals if r.unit.kind == "gate"]) as means:
        network(x)
    factors = means.compute()
    for r in removals:
        remove_(network, r, factors.get(r.unit.name))
    return factors


def test_units_are_found_where_they_go_and_with_what_they_save(shadow):
    found = {r.unit.key: (r.layer, r.side) for r in shadow._removable()}
    assert found == {
        "gate:3": ("", ""),  # a ReLU before and a Hardtanh behind
        "gate:5.body.3": ("5.body.4", "in"),
        "gate:6.body.5": ("6.body.4", "out"),
        **dict.fromkeys(("branch:5", "branch:6"), ("", "")),
    }
    macs = {u.key: u.macs for u in shadow.units()}
    assert macs["gate:3"] == 2 * 16 * 8
    assert macs["branch:5"] == 16 * (16 * 16 * 9 + 16 * 16) + 2 * 16 * 8
    ignoring = Shadow(drawn(), [EXAMPLE], ignore=("5.body.0",))
    assert [u.key for u in ignoring.units()] == ["gate:3", "gate:5.body.3", "branch:6", "gate:6.body.5"]


class Hidden(nn.Module):
    """What looks like a unit, and is none."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.local = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Sigmoid())  # equal shapes; no branch
        self.twice = Block(16, last=False)  # called twice
        self.attention = Gate(16)  # by position
        self.attention.scale = lambda x: self.attention.mix(x)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.attention(self.local(self.stem(x).relu()))
        return self.head(self.twice(self.twice(x)).mean((2, 3)))


def test_what_only_looks_like_a_unit_is_left_alone():
    network = Hidden().eval()
    network.attention.forward = lambda x: x * network.attention.mix(x)
    assert find(Proof(network, Call((EXAMPLE,)), {}, None), layer_macs(network, [EXAMPLE])[0]) == ()


FAMILIES = {  # gates that a reader takes, that a writer takes, that stay as a scale; branches
    "torchvision MobileNetV3": (lambda: models.mobilenet_v3_small(), (9, 0, 0, 6)),
    "torchvision MobileNetV2": (lambda: models.mobilenet_v2(width_mult=0.25), (0, 0, 0, 11)),
    "torchvision ResNet": (lambda: models.resnet18(), (0, 0, 0, 5)),
    "torchvision RegNetY": (
        lambda: RegNet(BlockParams([2, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], se_ratio=0.25), stem_width=8),
        (4, 0, 0, 2),
    ),
    "torchvision ConvNeXt": (lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)]), (0, 0, 0, 3)),
    "timm MobileNetV3": (lambda: timm.create_model("mobilenetv3_small_050"), (9, 0, 0, 7)),
    "timm EfficientNet": (
        lambda: EfficientNet(decode_arch_def([["ds_r1_k3_s1_e1_c16_se0.25"], ["ir_r2_k3_s2_e2_c24_se0.25"]]), 10),
        (3, 0, 0, 1),
    ),
    "timm SE-ResNet": (
        lambda: ResNet(BasicBlock, (1, 1, 1, 1), channels=(64, 16, 16, 16), block_args={"attn_layer": "se"}),
        (0, 4, 0, 1),
    ),
    "timm RegNetY": (lambda: timm.create_model("regnety_002"), (13, 0, 0, 9)),
    "timm ConvNeXt V2": (lambda: timm.create_model("convnextv2_atto", dims=(8, 16, 32, 64)), (0, 0, 0, 12)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_found_on_which_families(family):
    torch.manual_seed(0)
    build, expected = FAMILIES[family]
    network, x = build().eval(), torch.rand(2, 3, 32, 32)
    proof = Proof(network, Call((x,)), {}, None)
    ways = [(r.unit.kind, r.side) for r in plan(proof, find(proof, layer_macs(network, [x])[0]))]
    kinds = ("gate", "in"), ("gate", "out"), ("gate", ""), ("branch", "")
    assert tuple(ways.count(k) for k in kinds) == expected


def mean_where_alive(gate, x):
    """Over the samples in which a channel is not zero all over, behind a ReLU; in none: as the others."""
    alive = (x != 0).any(3, keepdim=True).any(2, keepdim=True)
    total = (gate.scale(x) * alive).sum(0)
    return torch.where(alive.any(0), total / alive.sum(0), total.sum() / alive.sum())


@pytest.mark.parametrize("keys", [(k,) for k in UNITS] + [UNITS[:3], UNITS])
def test_what_is_left_is_the_network_with_the_units_replaced_by_hand(shadow, keys):
    network, x = drawn().double(), torch.rand(6, 1, 8, 8, dtype=torch.float64)
    by_hand = copy.deepcopy(network)
    seen = {}
    for n in GATES:
        gate = by_hand.get_submodule(n)
        gate.register_forward_pre_hook(lambda m, args, n=n: seen.update({n: mean_where_alive(m, args[0])}))
    by_hand(x)
    for kind, name in (k.split(":") for k in keys):
        module = by_hand.get_submodule(name)
        module.forward = (lambda x, s=seen[name]: x * s) if kind == "gate" else (lambda x: x)
    less = shadow.without(keys)
    factors = removed_live(network, less.removals, x)
    for n, f in factors.items():
        torch.testing.assert_close(f.double().view(-1, 1, 1), seen[n], rtol=1e-6, atol=0)
    other = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(network(other), by_hand(other), rtol=1e-6, atol=1e-7)  # the factors are of float32
    assert less.macs == sum(layer_macs(network.float(), [EXAMPLE])[0].values())
    assert less.params == sum(p.numel() for p in network.parameters())


def test_channels_of_what_is_left_are_cut_as_ever_also_along_a_scale(shadow):
    network, x = drawn(), torch.rand(4, 1, 8, 8)
    less = shadow.without(["gate:3", "branch:6"])
    removed = some_channels(less.groups())
    cut = less.cut(removed)
    removed_live(network, less.removals, EXAMPLE)
    masked = copy.deepcopy(network)
    stream = next(g for g in less.groups() if any(c.module == "8" for c in g.consumers))
    apply_cut_(network, cut)
    assert network[3].weight.shape == (16 - len(removed[stream.name]), 1, 1) != (16, 1, 1)
    for g in less.groups():
        for c in g.consumers:
            gone = [i for i, k in zip(c.inputs, c.channels, strict=True) if k in removed[g.name]]
            layer = masked.get_submodule(c.module)
            dim = 1 - layer.weight.dim() if isinstance(layer, nn.Conv2d) else -1
            layer.register_forward_pre_hook(lambda _, a, d=dim, i=gone: a[0].index_fill(d, torch.tensor(i), 0.0))
    torch.testing.assert_close(network(x), masked(x), rtol=1e-4, atol=1e-5)
    assert (record(network), layer_macs(network, [EXAMPLE])[0]) == (cut.structure, layer_macs(network, [EXAMPLE])[0])


def test_means_are_of_the_samples_in_which_a_channel_lives_and_of_finite_ones(monkeypatch):
    gate, x = Gate(3), torch.rand(4, 3, 2, 2)
    x[0, 0] = x[:, 1] = 0
    x[3, 2, 0, 0] = float("nan")
    factors = torch.tensor([[1.0, 9, 2], [4, 9, 2], [6, 9, 5], [7, 7, 7]])
    monkeypatch.setattr(gate, "scale", lambda _: factors[:, :, None, None])
    with watching(nn.Sequential(gate), ["0"]) as means:
        gate(x)
    torch.testing.assert_close(means.compute()["0"], torch.tensor([5.0, (4 + 6 + 2 + 2 + 5) / 5, 3.0]))


def test_a_structure_rebuilds_a_fresh_network_and_grows_it_back(shadow):
    network, x = drawn(), torch.rand(4, 1, 8, 8)
    dense = take(network)
    less = shadow.without(["gate:3", "gate:5.body.3", "branch:6"])
    removed_live(network, less.removals, EXAMPLE)
    apply_cut_(network, less.cut(some_channels(less.groups())))
    plain = record(network).to_plain()
    assert plain["replaced"] == {"3": "scale", "5.body.3": "identity", "6": "identity"}
    fresh = gated_net().eval()
    kept = dict(fresh.named_parameters())
    apply_structure_(fresh, Structure.from_plain(plain))
    assert record(fresh) == record(network)
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(x), network(x))
    restore_(dense, fresh)  # from a dense network's record, by the parameters that were there at first
    assert torch.equal(fresh(x), drawn()(x))
    assert dict(fresh.named_parameters()).keys() == kept.keys()
    assert all(p is kept[n] for n, p in fresh.named_parameters())
    older = {k: v for k, v in dense.structure.to_plain().items() if k != "replaced"}  # of before there were units
    assert Structure.from_plain(older) == dense.structure


def test_a_unit_inside_of_one_that_went_comes_back_as_it_was(shadow):
    network, x = drawn(), torch.rand(4, 1, 8, 8)
    removed_live(network, shadow.without(["gate:5.body.3"]).removals, EXAMPLE)
    first, expected = take(network), network(x)
    removed_live(network, Shadow(network, [EXAMPLE]).without(["branch:5"]).removals, EXAMPLE)
    assert record(network).replaced == {"5": "identity"}
    restore_(first, network)
    assert record(network).replaced == {"5.body.3": "identity"}
    assert torch.equal(network(x), expected)


def test_a_structure_of_another_model_leaves_everything_as_it_was(shadow):
    network = drawn()
    removed_live(network, shadow.without(["gate:3"]).removals, EXAMPLE)
    before, x = record(network), torch.rand(2, 1, 8, 8)
    expected = network(x)
    structure = record(drawn())
    for other in (
        Structure(structure.shapes, structure.attributes, {"7.nothing": "identity"}),
        Structure({**structure.shapes, "more": (1,)}, structure.attributes),
    ):
        with pytest.raises(SurgeryError, match="of another model"):
            apply_structure_(network, other)
        assert record(network) == before
        assert torch.equal(network(x), expected)


def test_units_that_are_not_there_are_refused(shadow):
    with pytest.raises(SurgeryError, match=r"no unit has the key \['gate:9'\]; the network has \['gate:3'"):
        shadow.without(["gate:9", "gate:3"])
    with pytest.raises(TypeError, match="stands for nothing"):
        put_back_(drawn(), "3")


def test_the_exported_file_computes_the_same_without_a_trace_of_the_gates(shadow, tmp_path):
    network, x = drawn(), torch.rand(2, 1, 8, 8)
    removed_live(network, shadow.without([f"gate:{n}" for n in GATES] + [f"branch:{BRANCHES[1]}"]).removals, EXAMPLE)
    export_onnx(network, x, tmp_path / "net.onnx")
    nodes = [n.op_type for n in onnx.load(tmp_path / "net.onnx").graph.node]
    assert (nodes.count("Sigmoid"), nodes.count("ReduceMean"), nodes.count("Mul"), nodes.count("Add")) == (0, 0, 1, 1)
    (out,) = sessions.session(tmp_path / "net.onnx").run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.tensor(out), network(x).detach(), rtol=1e-4, atol=1e-5)
