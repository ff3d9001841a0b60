import copy

import torch
from networks import build
from torch import nn

from hqp_lightning.surgery.copying import deep_copy


def test_a_copy_is_what_deepcopy_makes_and_its_own():
    network, calls = build("regnet"), []
    network.fc.register_forward_hook(lambda *_: calls.append("fc"))
    x, shared = torch.randn(2, 3, 32, 32), network.fc.weight
    twin, expected = deep_copy(network, {id(shared): shared}), copy.deepcopy(network)
    assert torch.equal(twin(x), expected(x))
    assert calls == ["fc", "fc"]
    assert twin.fc.weight is shared
    ours, theirs = dict(twin.named_modules()), dict(expected.named_modules())
    assert list(ours) == list(theirs)
    for name, module in ours.items():
        assert {k: type(v) for k, v in vars(module).items()} == {k: type(v) for k, v in vars(theirs[name]).items()}
    # A hook or a tensor of the one is none of the other's.
    twin.stem.register_forward_hook(lambda *_: calls.append("stem"))
    nn.init.zeros_(twin.stem[0].weight)
    assert torch.equal(network(x), expected(x))
    assert "stem" not in calls
