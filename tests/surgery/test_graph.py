import copy

import pytest
import torch
import torch_pruning as tp
from networks import BUILDERS, build
from surgery_samples import EXAMPLE, plan, some_channels
from torch import nn
from torchvision import models

from hqp_lightning.core.fisher import compute
from hqp_lightning.core.gradients import gradient_sums
from hqp_lightning.errors import ConfigurationError, SurgeryError
from hqp_lightning.surgery import Shadow, apply_cut_
from hqp_lightning.surgery.copying import training_shapes


@pytest.mark.parametrize("name", [*BUILDERS, "two_heads"])
def test_the_head_is_never_among_the_groups(name):
    network = build(name)
    before = network(EXAMPLE)
    heads = {"two_heads": {"masks", "classes"}, "resnet18": {"fc"}, "mobilenet_v3_small": {"classifier.3"}}
    groups, _, cut = plan(network)
    written = {f.parameter.rpartition(".")[0] for g in groups for f in g.filters}
    last = [n for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1]
    assert written.isdisjoint(heads.get(name, {last}))
    apply_cut_(network, cut)
    after = network(EXAMPLE)
    if isinstance(before, dict):
        assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    else:
        assert after.shape == before.shape


def test_a_head_that_is_a_1x1_convolution_stays():
    network = models.squeezenet1_1(num_classes=10)
    groups = Shadow(network, [torch.zeros(1, 3, 64, 64)]).groups()
    assert len(groups) == 25
    assert "classifier.1" not in {g.name for g in groups}


def test_groups_of_a_residual_stage_by_hand():
    groups = {g.name: g for g in Shadow(build("resnet18"), [EXAMPLE]).groups()}
    inner = groups["layer2.0.conv1"]
    assert (inner.channels, inner.blocks, inner.gates) == (128, 1, 128)
    assert [(c.module, c.inputs, c.channels) for c in inner.consumers] == [
        ("layer2.0.conv2", tuple(range(128)), tuple(range(128)))
    ]
    assert [f.parameter for f in inner.filters] == ["layer2.0.conv1.weight"]
    # 32 px: layer2 works on 4 x 4; a channel is one filter of conv1 and one slice of conv2.
    assert inner.macs_per_channel == 4 * 4 * 9 * 64 + 4 * 4 * 9 * 128
    assert list(groups)[:5] == ["conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0"]
    stem = next(g for g in groups.values() if "conv1.weight" in {f.parameter for f in g.filters})
    assert {c.module for c in stem.consumers} == {
        "layer1.0.conv1",
        "layer1.1.conv1",
        "layer2.0.conv1",
        "layer2.0.downsample.0",
    }


def test_several_inputs_per_channel_behind_a_flatten():
    groups = {g.name: g for g in Shadow(build("vgg"), [EXAMPLE]).groups()}
    (consumer,) = groups["3"].consumers
    assert consumer.module == "7"
    assert dict(zip(consumer.inputs, consumer.channels, strict=True)) == {i: i // 9 for i in range(144)}


@pytest.mark.parametrize("name", BUILDERS)
def test_predicted_macs_of_one_group_are_what_the_cut_saves(name):
    network = build(name)
    groups = Shadow(network, [EXAMPLE]).groups()
    for group in groups[:: len(groups) // 8 + 1]:  # some of a deep network, to be quick
        shadow = Shadow(network, [EXAMPLE])
        channels = tuple(range(0, group.channels, group.gates))  # one gate
        saved = shadow.macs - shadow.cut({group.name: channels}).macs
        coupled = {f.parameter.rpartition(".")[0] for f in group.filters} & {c.module for c in group.consumers}
        if not coupled:  # a layer that reads and writes the group saves a little less than the sum
            assert saved == pytest.approx(group.macs_per_channel * len(channels))
        assert saved > 0


def test_the_live_network_is_not_touched():
    network = build("mobilenet_v3_small").train()
    network.features[0].requires_grad_(False)
    network.features[1].eval()
    before = copy.deepcopy(network.state_dict())
    flags = [(p.requires_grad, p.shape) for p in network.parameters()]
    modes = [m.training for m in network.modules()]
    state = torch.get_rng_state()
    groups, removed, _ = plan(network)
    assert sum(len(c) for c in removed.values()) > 0
    assert len(groups) == 27
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert [(p.requires_grad, p.shape) for p in network.parameters()] == flags
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)  # dropout in the trial forward must not shift the training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_planning_works_under_inference_mode_and_autocast():
    network = build("regnet")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = plan(network)[2]
    outside = plan(network)[2]
    assert inside.structure == outside.structure
    assert all(torch.equal(inside.kept[n], outside.kept[n]) for n in outside.kept)


def test_ignored_modules_keep_their_channels():
    network = build("resnet18")
    names = {g.name for g in Shadow(network, [EXAMPLE], ignore=["layer2", "layer3.0.conv1"]).groups()}
    assert "layer3.1.conv1" in names
    assert not {n for n in names if n.startswith("layer2")} | names & {"conv1", "layer3.0.conv1"}
    with pytest.raises(ConfigurationError, match=r"ignore=\['fc2'\] names no module"):
        Shadow(network, [EXAMPLE], ignore=["fc2"])


class HardCodedView(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        return self.head(x.view(-1, 8, x.shape[2] * x.shape[3]).mean(2))


class TrainingHead(nn.Module):
    """An auxiliary head that runs in training only, so that a trace in eval mode does not see it."""

    def __init__(self):
        super().__init__()
        self.body, self.drop = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), nn.Dropout(0.5)
        self.tail, self.head, self.auxiliary = nn.Conv2d(8, 8, 1), nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x):
        x = self.drop(self.body(x))
        out = self.head(self.tail(x).mean((2, 3)))
        return (out, self.auxiliary(x.mean((2, 3)))) if self.training else out


def test_a_forward_with_a_hard_coded_size_is_refused():
    network = HardCodedView()
    shadow = Shadow(network, [EXAMPLE])
    assert [(n.group, n.status) for n in shadow.notes] == [("second", "left out")]
    assert shadow.notes[0].reason.startswith("the forward holds a number of channels as a constant (shape")
    with pytest.raises(SurgeryError, match="no prunable group is named"):
        shadow.cut({"second": (0, 1)})
    apply_cut_(network, shadow.cut({"first": (0, 1)}))  # the other group may go
    assert network(EXAMPLE).shape == (2, 10)


@pytest.mark.parametrize("samples", [1, 2])
def test_what_only_breaks_in_training_is_left_out(samples):
    network, example = TrainingHead(), EXAMPLE[:samples, :, :1, :1]
    shadow = Shadow(network, [example])
    assert [n.group for n in shadow.notes if "in training mode" in n.reason] == ["body.0"]
    cut = shadow.cut({"tail": (0, 1)})
    apply_cut_(network.train(), cut)
    assert [o.shape for o in network(EXAMPLE)] == [(2, 10), (2, 10)]


def test_a_forward_that_never_worked_in_training_mode_does_not_matter():
    class NeedsTargets(nn.Sequential):
        def forward(self, x, targets=None):
            if self.training and targets is None:
                raise ValueError("targets should not be None")
            return super().forward(x)

    network = NeedsTargets(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert training_shapes(network, [EXAMPLE]) is None
    assert Shadow(network, [EXAMPLE]).cut({"0": (0,)}).params < sum(p.numel() for p in network.parameters())


def test_channels_that_are_not_the_groups_are_refused():
    network = build("resnext")
    with pytest.raises(SurgeryError, match=r"no prunable group is named \['fc'\]"):
        Shadow(network, [EXAMPLE]).cut({"fc": (0,)})
    groups = {g.name: g for g in Shadow(network, [EXAMPLE]).groups()}
    tied = groups["layer1.0.conv1"]
    for channels, said in (
        ((tied.channels,), "has channels 0 to"),
        (range(tied.channels), "one must stay; got all of them"),
        ((0,), r"channels \(0, 4, 8, 12\) of group .* go together"),
    ):
        with pytest.raises(SurgeryError, match=said):
            Shadow(network, [EXAMPLE]).cut({tied.name: channels})


def test_bad_inputs_and_networks_are_refused_before_any_training():
    with pytest.raises(ConfigurationError, match=r"could not run and trace Sequential.*\(1, 5, 32, 32\).*channels"):
        Shadow(build("vgg"), [torch.zeros(1, 5, 32, 32)])

    class Uncopyable(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    with pytest.raises(ConfigurationError, match="can't be copied.*no copies"):
        Shadow(Uncopyable(3, 3), [torch.zeros(1, 3)])


def test_two_prunes_after_each_other():
    network = build("mobilenet_v3_small")
    macs = [Shadow(network, [EXAMPLE]).macs]
    for seed in (1, 2):
        shadow = Shadow(network, [EXAMPLE])
        cut = shadow.cut(some_channels(shadow.groups(), 0.25, seed))
        apply_cut_(network, cut)
        macs.append(Shadow(network, [EXAMPLE]).macs)
        assert cut.macs == pytest.approx(macs[-1])
    assert macs[0] > macs[1] > macs[2]


def test_group_norms_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU())
    network = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    first, norm, second = network[0][0], network[0][1], network[0][3]
    nn.init.uniform_(norm.weight)
    norms = Shadow(network, [torch.zeros(1, 3, 8, 8)]).group_norms()
    assert set(norms) == {"0.0", "0.3"}
    written, read = first.weight.square().sum((1, 2, 3)), second.weight.square().sum((0, 2, 3))
    expected = written + norm.weight.square() + read
    assert torch.allclose(norms["0.0"], expected / expected.mean())
    expected = second.weight.square().sum((1, 2, 3)) + network[3].weight.square().sum(0)
    assert torch.allclose(norms["0.3"], expected / expected.mean())


@pytest.mark.parametrize("name", ["resnext", "mobilenet_v3_small"])
def test_group_norms_have_one_value_for_each_gate(name):
    shadow = Shadow(build(name), [EXAMPLE])
    norms = shadow.group_norms()
    assert {n: len(v) for n, v in norms.items()} == {g.name: g.gates for g in shadow.groups()}
    assert all(v.mean() == pytest.approx(1.0, abs=1e-4) for v in norms.values())


def test_isomorphic_taylor_is_torch_prunings_and_takes_the_same_share_of_each_kind():
    """Beside its importance of its own groups: layers with a BatchNorm are of one kind, those without of another."""
    torch.manual_seed(0)
    block = lambda c: nn.Sequential(nn.Conv2d(c, 8, 3), nn.ReLU(), nn.Conv2d(8, c, 1), nn.BatchNorm2d(c))  # noqa: E731
    network = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), block(16), block(16), nn.Flatten(1)).eval()
    network[3].requires_grad_(False)
    x = torch.randn(5, 3, 6, 6)
    loss = lambda: network(x).square().sum(1)  # noqa: E731
    state = gradient_sums(network, loss)
    assert not network[3][0].weight.requires_grad
    assert state.samples == 5
    places = Shadow(network, [x[:1]]).isomorphic_taylor(compute(state))

    network.requires_grad_(True)
    graph = tp.DependencyGraph().build_dependency(network, x[:1])
    loss().mean().backward()
    taylor = tp.importance.GroupTaylorImportance()
    expected = {}
    for name in places:
        root = network.get_submodule(name)
        expected[name] = taylor(
            graph.get_pruning_group(root, tp.prune_conv_out_channels, list(range(root.out_channels)))
        )
    assert set(places) == {"0", "2.0", "2.2", "3.0"}
    for names in (["0", "2.2"], ["2.0", "3.0"]):
        found, wanted = (torch.cat([v[n] for n in names]) for v in (places, expected))
        assert torch.equal(found.argsort(), wanted.argsort())
        assert torch.equal(found.sort().values, torch.arange(1, len(found) + 1) / len(found))
