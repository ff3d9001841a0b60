"""What a proof finds: kinds of networks whose channels a graph that goes by sizes follows wrongly."""

import copy
import logging
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from hqp_lightning.core.selection import Caps, propose
from hqp_lightning.errors import ConfigurationError, SurgeryError
from hqp_lightning.surgery import Shadow, apply_cut_, limit, tracing
from hqp_lightning.surgery.limit import time_limit

X = torch.randn(2, 3, 8, 8)


class Way(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, way, read=16):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.way, self.second, self.head = way, nn.Conv2d(read, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.second(self.way(self.norm(self.first(x)).relu())).relu().mean((2, 3)))


def shuffled(x):
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)


def convolved(x):
    kernel = torch.tensor([[[0.2, 0.5, 0.3]]], dtype=x.dtype)
    vector = nn.functional.conv1d(x.mean((2, 3))[:, None], kernel, padding=1)
    return x * vector.sigmoid()[:, 0, :, None, None]


WRONG = {
    "shuffle": (shuffled, 16),
    "two shuffles that are none at this width": (lambda x: shuffled(shuffled(x)), 16),
    "flip": (lambda x: x.flip(1), 16),
    "roll": (lambda x: x.roll(1, 1), 16),
    "convolution over the channel vector": (convolved, 16),
    "constant": (lambda x: x.view(-1, 16, x.shape[2], x.shape[3]), 16),
    "fixed split": (lambda x: x.split([4, 12], 1)[1], 12),
}


@pytest.mark.parametrize("name", WRONG)
def test_groups_that_would_compute_something_else_are_left_out_and_told_once(name, caplog):
    network = Way(*WRONG[name])
    with caplog.at_level(logging.WARNING):
        shadow = Shadow(network, [X])
        Shadow(network, [X])
    assert [(n.group, n.status) for n in shadow.notes] == [("first", "left out")]
    assert [g.name for g in shadow.groups()] == ["second"]
    assert len(caplog.records) == 1
    assert "first: " in caplog.text


class ByName(Way):
    """Its layers are called by keyword."""

    def forward(self, x):
        return self.head(input=self.second(input=self.norm(input=self.first(input=x)).relu()).relu().mean((2, 3)))


def test_layers_that_are_called_by_keyword_are_proved_exactly():
    shadow = Shadow(ByName(None), [X])
    assert ([g.name for g in shadow.groups()], shadow.notes) == (["first", "second"], ())


class Keeping(Way):
    """Keeps what it computed, for somebody who looks at it; the graph goes with it."""

    def __init__(self):
        super().__init__(lambda x: x)
        self.maps, self.own = {}, nn.Sequential(nn.ReLU())

    def forward(self, x):
        self.features = self.own[0].last = self.own(self.first(x))
        self.maps["first"] = [self.features]
        return super().forward(x)


def test_a_network_that_keeps_its_features_is_copied_without_their_graph():
    network = Keeping().eval()
    expected = network(X)
    shadow = Shadow(network, [X])
    assert [g.name for g in shadow.groups()] == ["first", "second"]
    assert shadow.units() == ()
    apply_cut_(network, shadow.cut({"first": (1, 5)}))
    assert network(X).shape == expected.shape
    assert network.maps["first"][0].grad_fn is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # of torch, which advises another compiler
def test_a_scripted_part_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"'way' was compiled by torch.jit .*compile it afterwards"):
        Shadow(Way(torch.jit.script(nn.ReLU())), [X])


def multiplied(x):
    u, v = x.chunk(2, 1)
    return u * v.sigmoid()


class Apart(nn.Module):
    """Each half of the channels has a convolution of its own."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        half = x.shape[1] // 2
        return torch.cat([self.one(x[:, :half]), self.other(x[:, half:])], 1)


GATED = {"halves that are multiplied": (lambda: multiplied, 8), "halves that go different ways": (Apart, 16)}


@pytest.mark.parametrize("name", GATED)
def test_halves_lose_the_same_channels(name):
    way, read = GATED[name]
    network = Way(way(), read)
    shadow = Shadow(network, [X])
    group = next(g for g in shadow.groups() if g.name == "first")
    assert (group.blocks, group.gates) == (2, 8)
    with pytest.raises(SurgeryError, match="go together"):
        shadow.cut({"first": (0, 1)})
    apply_cut_(network, shadow.cut({"first": (0, 3, 8, 11)}))
    assert network.first.out_channels == 12
    assert network(X).shape == (2, 4)


class Joined(nn.Module):
    """Half of the channels is written by a convolution of its own, and all are added to others."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.all = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 1)
        self.read, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.cat([self.one(x), self.other(x)], 1) + self.all(x)
        return self.head(self.read(x).relu().mean((2, 3)))


def test_a_layer_that_writes_a_part_of_a_group_keeps_a_channel():
    network = Joined()
    shadow = Shadow(network, [X])
    group = next(g for g in shadow.groups() if g.channels == 16)
    one = next(f for f in group.filters if f.parameter == "one.weight")
    assert set(group.parts) == {frozenset(range(8)), frozenset(range(8, 16))}
    with pytest.raises(SurgeryError, match=rf"\(of 8\) are all that a layer reads or writes of group '{group.name}'"):
        shadow.cut({group.name: one.channels})
    values = torch.ones(16)
    values[list(one.channels)] = 0.1
    step = propose([group], {group.name: values}, 7.5 * group.macs_per_channel, Caps(round_to=8))
    assert set(one.channels) - set(step.removed[group.name]) == {max(one.channels)}  # the last of equal ones
    apply_cut_(network, shadow.cut(step.removed))
    assert (network.one.out_channels, network.other.out_channels, network.all.out_channels) == (1, 7, 8)
    assert network(X).shape == (2, 4)


def test_a_softmax_over_channels_is_an_approximation():
    shadow = Shadow(Way(lambda x: x.softmax(1)), [X])
    assert [(n.group, n.status) for n in shadow.notes] == [("first", "approximate")]
    assert {g.name for g in shadow.groups()} == {"first", "second"}


def test_an_output_that_is_none_is_nothing():
    class WithNone(Way):
        def forward(self, x):
            return {"out": super().forward(x), "aux": None}

    assert {g.name for g in Shadow(WithNone(nn.Conv2d(16, 16, 1)).eval(), [X]).groups()} == {"first", "way", "second"}


class Standardised(nn.Conv2d):
    """As in NFNets: the weight of a filter without its mean, times a gain of its own."""

    def __init__(self):
        super().__init__(16, 16, 1)
        self.gain = nn.Parameter(torch.rand(16, 1, 1, 1) + 0.5)

    def forward(self, x):
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) * self.gain
        return nn.functional.conv2d(x, weight, self.bias)


def test_a_gain_for_each_filter_goes_with_its_filter():
    network = Way(nn.Sequential(Standardised(), nn.ReLU(), nn.Conv2d(16, 16, 1))).eval()
    shadow = Shadow(network, [X])
    assert [(n.group, n.status) for n in shadow.notes] == [("first", "approximate")]
    masked = copy.deepcopy(network)
    masked.way[2].weight.data[:, [0, 3]] = 0
    apply_cut_(network, shadow.cut({"way.0": (0, 3)}))
    assert torch.equal(network.way[0].gain, masked.way[0].gain[[i for i in range(16) if i not in (0, 3)]])
    torch.testing.assert_close(network(X), masked(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normed", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_reparametrized_layers_are_left_alone_and_the_rest_is_pruned(normed):
    network = Way(nn.Sequential(normed(nn.Conv2d(16, 16, 1)), nn.ReLU(), nn.Conv2d(16, 16, 1)))
    shadow = Shadow(network, [X])
    assert all("a parametrization" in n.reason for n in shadow.notes)
    assert {n.group for n in shadow.notes} == {"first", "way.0"}
    assert {g.name for g in shadow.groups()} == {"way.2", "second"}


def test_a_branch_that_starts_at_zero_hides_nothing():
    network = Way(shuffled)
    nn.init.zeros_(network.norm.weight)  # as zero-initialised residual branches
    assert [n.group for n in Shadow(network, [X]).notes] == ["first"]


class Slow(nn.Module):
    """Takes its time in every forward that autograd follows, as a trace does."""

    followed = 0

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 1))

    def forward(self, x):
        Slow.followed += torch.is_grad_enabled()
        for _ in range(500 if torch.is_grad_enabled() else 0):
            time.sleep(0.01)
        return self.inner(x)


def test_a_trace_that_takes_too_long_names_the_module_and_works_without_it(monkeypatch):
    monkeypatch.setattr(tracing, "LIMIT_S", 0.2)
    with pytest.raises(ConfigurationError, match=r"longer than 0.2 s, in 'way'.*ignore=\['way'\]"):
        Shadow(Way(Slow()), [X])
    before = Slow.followed
    shadow = Shadow(Way(Slow()), [X], ignore=["way"])
    assert Slow.followed == before  # not even tried
    assert [g.name for g in shadow.groups()] == ["second"]


def test_the_limit_interrupts_any_thread_and_leaves_nothing_behind():
    said = []

    def work():
        try:
            with time_limit(0.1):
                while True:
                    try:
                        time.sleep(0.01)
                    except Exception:  # what catches everything must not catch this
                        continue
        except TimeoutError as error:
            said.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    with time_limit(0.05):
        pass
    time.sleep(0.1)
    assert said == ["not finished after 0.1 s"]


UNDER_A_PROFILER = """
import runpy, sys, time
time_limit = runpy.run_path(sys.argv[1])["time_limit"]
sys.setprofile(lambda *_: None)
with time_limit(60):
    pass
try:
    with time_limit(0.05):
        while True:
            pass
except TimeoutError as error:
    print(error)
with time_limit(0.05):
    try:
        while True:
            pass
    except BaseException:
        print("swallowed")
print(len(list(map(lambda _: 0, range(9)))))
"""


def test_a_profiled_process_goes_on_after_a_limit():  # Trainer(profiler="advanced"), a debugger, coverage
    command = [sys.executable, "-c", UNDER_A_PROFILER, limit.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:3] == ["not finished after 0.05 s", "swallowed", "9"]


def test_the_generators_of_devices_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded, and not put back"))
    network, before = Way(nn.Dropout(0.5)), torch.get_rng_state()
    assert Shadow(network, [X]).groups()
    assert torch.equal(torch.get_rng_state(), before)
