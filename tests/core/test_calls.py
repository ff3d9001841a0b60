from collections import namedtuple

import torch
from torch import nn

from hqp_lightning.core.calls import Call, OneTensor, as_call

Pair = namedtuple("Pair", "left right")


def test_tensors_are_found_wherever_they_lie():
    a, b, c, d = (torch.full((n,), float(n)) for n in range(1, 5))
    call = Call((a, [b, 7]), {"pair": Pair(c, "text"), "more": {"d": d}, "flag": True})
    assert [int(t[0]) for t in call.tensors()] == [1, 2, 3, 4]
    doubled = call.map(lambda t: 2 * t)
    assert doubled.kwargs["pair"] == Pair(doubled.kwargs["pair"].left, "text")
    assert doubled.kwargs["flag"] is True
    assert doubled.args[1][1] == 7
    assert float(doubled.kwargs["more"]["d"][0]) == 8
    assert call.shapes() == ((1,), (2,), (3,), (4,))
    assert as_call(call) is call
    assert as_call([a]) == Call((a,))


class ByName(nn.Module):
    def forward(self, pixels, scale=1.0):
        return pixels * scale


def test_a_call_by_name_becomes_a_function_of_its_tensor():
    call = Call((), {"pixels": torch.ones(2), "scale": 3.0})
    assert call.on(ByName()).tolist() == [3, 3]
    assert OneTensor(ByName(), call)(torch.tensor([5.0])).tolist() == [15]
