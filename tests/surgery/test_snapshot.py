import copy
import io

import pytest
import torch
from networks import build
from surgery_samples import plan
from torch import nn
from torch.nn import functional as F

from hqp_lightning.errors import SurgeryError
from hqp_lightning.surgery import Snapshot, apply_cut_, record, restore_, slice_optimizers_, take

SETUPS = {
    "sgd_onecycle": (
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=50),
    ),
    "adam_cosine": (
        lambda p: torch.optim.Adam(p, 1e-3),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
    ),
    "adamw_fused_steps": (
        lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4]),
    ),
}


class Run:
    """A training with a frozen part, on batches that the number of the step fixes."""

    def __init__(self, kind, network="regnet", memory_format=torch.contiguous_format):
        self.network = build(network).to(memory_format=memory_format).train()
        for parameter in list(self.network.children())[0][0].parameters():
            parameter.requires_grad_(False)
        make_optimizer, make_scheduler = SETUPS[kind]
        weights = [p for p in self.network.parameters() if p.requires_grad and p.dim() > 1]
        other = [p for p in self.network.parameters() if p.requires_grad and p.dim() == 1]
        self.optimizer = make_optimizer([{"params": weights}, {"params": other, "weight_decay": 0.01}])
        self.scheduler = make_scheduler(self.optimizer)

    def train(self, steps):
        for step in range(steps):
            torch.manual_seed(step)
            x, y = torch.randn(4, 3, 32, 32), torch.randint(0, 10, (4,))
            self.optimizer.zero_grad()
            F.cross_entropy(self.network(x), y).backward()
            self.optimizer.step()
            self.scheduler.step()

    def prune(self, seed):
        cut = plan(self.network, fraction=0.25, seed=seed)[2]
        apply_cut_(self.network, cut)
        slice_optimizers_([self.optimizer], self.network, cut)

    def facts(self):
        """Everything there is, copied."""
        names = {id(p): n for n, p in self.network.named_parameters()}
        return copy.deepcopy(
            {
                "tensors": dict(self.network.state_dict()),
                "structure": record(self.network),
                "optimizer": {names[id(p)]: s for p, s in self.optimizer.state.items()},
                "groups": [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups],
                "scheduler": self.scheduler.state_dict(),
            }
        )


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", SETUPS)
def test_two_prunes_and_training_are_undone_bit_for_bit(kind, memory_format):
    run = Run(kind, memory_format=memory_format)
    run.train(2)
    held, before = dict(run.network.named_parameters()), run.facts()
    strides = {n: p.stride() for n, p in held.items()}
    snapshot = take(run.network, [run.optimizer], [run.scheduler])
    run.prune(1)
    run.train(2)
    run.prune(2)
    run.train(2)
    assert record(run.network) != before["structure"]
    assert run.scheduler.state_dict() != before["scheduler"]
    restore_(snapshot, run.network, [run.optimizer], [run.scheduler])
    assert_same(run.facts(), before)
    for name, parameter in run.network.named_parameters():
        assert parameter is held[name]
        assert parameter.grad is None
        assert parameter.stride() == strides[name]
    # ... and it goes on as if nothing had happened.
    run.train(2)
    straight = Run(kind, memory_format=memory_format)
    straight.train(2)
    straight.train(2)
    assert_same(run.facts(), straight.facts())


def test_a_snapshot_survives_later_training_and_serves_twice():
    run = Run("sgd_onecycle")
    run.train(1)
    before = run.facts()
    snapshot = take(run.network, [run.optimizer], [run.scheduler])
    for seed in (1, 2):
        run.prune(seed)
        run.train(1)
        restore_(snapshot, run.network, [run.optimizer], [run.scheduler])
        assert_same(run.facts(), before)


def bytes_of(value):
    """Bytes of every storage below ``value``, which must be on the CPU."""
    if isinstance(value, torch.Tensor):
        assert value.device.type == "cpu"
        return {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()}
    below = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return {k: n for v in below for k, n in bytes_of(v).items()}


@pytest.mark.parametrize("kind", SETUPS)
def test_a_snapshot_is_one_copy_of_parameters_and_state(kind):
    run = Run(kind, "mobilenet_v3_small")  # of some size
    run.train(1)
    live = {**bytes_of(dict(run.network.state_dict())), **bytes_of(list(run.optimizer.state.values()))}
    held = bytes_of(take(run.network, [run.optimizer], [run.scheduler]).to_plain())
    assert not set(held) & set(live)
    assert sum(live.values()) > 5e6
    assert sum(held.values()) <= sum(live.values())


def test_state_that_came_later_is_dropped():
    run = Run("adam_cosine")
    snapshot = take(run.network, [run.optimizer], [run.scheduler])
    run.train(1)
    assert run.optimizer.state
    restore_(snapshot, run.network, [run.optimizer], [run.scheduler])
    assert not run.optimizer.state


@pytest.mark.parametrize("kind", SETUPS)
def test_plain_data_goes_through_a_file_with_weights_only(kind):
    run = Run(kind)
    run.train(2)
    run.prune(1)
    before = run.facts()
    buffer = io.BytesIO()
    torch.save(take(run.network, [run.optimizer], [run.scheduler]).to_plain(), buffer)
    buffer.seek(0)
    loaded = Snapshot.from_plain(torch.load(buffer, weights_only=True))
    fresh = Run(kind)
    restore_(loaded, fresh.network, [fresh.optimizer], [fresh.scheduler])
    assert_same(fresh.facts(), before)


def test_parameters_of_another_module_keep_their_place():
    network, outside = build("vgg"), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*network.parameters(), outside], 0.1, momentum=0.9)
    (network(torch.randn(2, 3, 32, 32)).sum() + outside.sum()).backward()
    optimizer.step()
    snapshot = take(network, [optimizer])
    momentum = optimizer.state[outside]["momentum_buffer"].clone()
    optimizer.step()
    restore_(snapshot, network, [optimizer])
    assert torch.equal(optimizer.state[outside]["momentum_buffer"], momentum)


def test_another_network_is_refused():
    snapshot = take(build("vgg"))
    network = build("regnet")
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(SurgeryError, match="another model"):
        restore_(snapshot, network)
    assert_same(dict(network.state_dict()), dict(before))


def test_a_group_of_parameters_that_came_later_stays_and_begins_anew():
    """As a callback adds it that unfreezes a backbone, between a step and what takes it back."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(network[2].parameters(), 0.1, momentum=0.9)

    def train():
        network(torch.randn(4, 4)).square().sum().backward()
        optimizer.step()

    train()
    before, expected = take(network, [optimizer]), copy.deepcopy(optimizer.state_dict())
    optimizer.add_param_group({"params": network[0].parameters(), "lr": 0.01})
    train()
    optimizer.param_groups[0]["lr"] = 0.05
    restore_(before, network, [optimizer])
    found = optimizer.state_dict()
    assert found["param_groups"][0] == expected["param_groups"][0]
    assert [g["lr"] for g in found["param_groups"]] == [0.1, 0.01]
    torch.testing.assert_close(found["state"], expected["state"], rtol=0, atol=0)
