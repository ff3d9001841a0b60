"""What a network returns, taken apart and put together again."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from hqp_lightning.core.calls import Call, Tensors
from hqp_lightning.core.structure import names, put_back, tensors_of, unique
from hqp_lightning.errors import ExportError

Pair = namedtuple("Pair", "left right")


@dataclass
class Output:
    logits: torch.Tensor
    loss: object = None


class ModelOutput(OrderedDict):  # as transformers' own: keys are attributes, too
    logits = property(lambda self: self["logits"])


A, B = torch.zeros(1), torch.ones(1)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (A, ["logits"]),
        ({"out": A, "aux": B, "scale": 2.0}, ["out", "aux"]),
        (OrderedDict(out=A, features=[A, B]), ["out", "features_0", "features_1"]),
        ((A, {"boxes": B}, None), ["output_0", "output_1_boxes"]),
        (Pair(A, B), ["left", "right"]),
        (Output(A), ["logits"]),
        (ModelOutput(logits=A, hidden_states=(A, B)), ["logits", "hidden_states_0", "hidden_states_1"]),
        ({"a.b": A, "a/b": B}, ["a_b", "a_b_2"]),
    ],
)
def test_every_tensor_has_a_name_and_comes_back_to_its_place(returned, expected):
    found = tensors_of(returned)
    assert list(names(found, "logits", "output")) == expected
    again = put_back(returned, list(found), [x + 5 for x in found.values()])
    assert type(again) is type(returned)
    assert [x + 5 for x in found.values()] == list(tensors_of(again).values())
    assert list(tensors_of(again)) == list(found)


def test_what_is_left_out_is_absent_and_says_so_when_it_is_asked_for():
    part = put_back({"out": A, "aux": B}, [("out",)], [A])
    assert "aux" not in part
    assert part["out"] is A
    with pytest.raises(ExportError, match=r"needs the output 'aux', which outputs=\.\.\. of Int8Export leaves out"):
        part["aux"]
    _, right = put_back((A, B), [("0",)], [A])
    for use in (lambda: right + 1, lambda: right.mean(), lambda: nn.functional.relu(right), lambda: A * right):
        with pytest.raises(ExportError, match="needs the output '1'"):
            use()


def test_a_network_as_a_function_of_its_tensors():
    class Net(nn.Module):
        def forward(self, image, depths, *, gain, mask=None):
            return {"sum": gain * (image + depths["near"] + mask), "rest": (depths["far"],)}

    call = Call((A, {"near": B, "far": A}), {"gain": 3.0, "mask": B})
    assert call.names(Net().forward) == ("image", "depths_near", "depths_far", "mask")
    plain = Tensors(Net(), call, [("sum",)])
    assert [x.item() for x in plain(*(torch.full((1,), float(k)) for k in (1, 2, 3, 4)))] == [21.0]
    assert unique(["mask", "out"], taken=("mask",)) == ("mask_2", "out")
