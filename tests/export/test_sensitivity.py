"""The noise of one quantized layer, against torch's own fake quantization of that layer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hqp_lightning.errors import ExportError
from hqp_lightning.export import collect_ranges, export_onnx, quantization_noise


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 8, 3, groups=4)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.b.weight[0] *= 50  # one loud channel makes the next layer's input coarse for all others

    def forward(self, x, quantized="", ranges=None):
        def q(name, layer, x):
            if name != quantized:
                return layer(x)
            step = ranges / 127
            x = torch.fake_quantize_per_tensor_affine(x, step, 0, -127, 127)
            top = layer.weight.detach().flatten(1).abs().amax(1)
            w = torch.fake_quantize_per_channel_affine(
                layer.weight, top / 127, torch.zeros_like(top, dtype=torch.int32), 0, -127, 127
            )
            if name == "head":
                return nn.functional.linear(x, w, layer.bias)
            return nn.functional.conv2d(x, w, layer.bias, groups=layer.groups)

        x = q("a", self.a, x).relu()
        x = q("b", self.b, x).relu()
        return q("head", self.head, x.mean((2, 3)))


@pytest.fixture
def case(tmp_path):
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(16, 3, 10, 10)
    path = tmp_path / "net.onnx"
    export_onnx(net, x[:1], path)
    ranges = collect_ranges(path, [x.numpy()], method="max")
    return net, path, x, {name: replace(r, means=()) for name, r in ranges.items()}  # torch leaves biases as they are


def test_equals_torchs_fake_quantization_of_that_layer_alone(case):
    net, path, x, ranges = case
    noise = quantization_noise(path, ranges, x.numpy(), threads=1)
    assert [n.split("/")[1] for n in noise] == ["a", "b", "head"]
    with torch.no_grad():
        y = net(x).double()
        y -= y.mean(1, keepdim=True)
        # a, b, head read the input and what two activations reach at most, in this order
        inputs = {"a": x, "b": net.a(x).relu(), "head": net.b(net.a(x).relu()).relu().mean((2, 3))}
        for name, value in noise.items():
            layer = name.split("/")[1]
            logits = net(x, layer, float(inputs[layer].abs().max())).double()
            logits -= logits.mean(1, keepdim=True)
            expected = float(((logits - y) ** 2).sum() / (y**2).sum())
            assert value == pytest.approx(expected, rel=0.02), name
    assert max(noise, key=noise.get) != "/a/Conv"


def test_a_shift_of_all_logits_is_no_noise(case):
    """A bias of the head moves all logits alike: neither the signal nor the noise may change."""
    net, path, x, ranges = case
    before = quantization_noise(path, ranges, x.numpy())
    with torch.no_grad():
        net.head.bias += 100.0
    export_onnx(net, x[:1], path)
    after = quantization_noise(path, ranges, x.numpy())
    assert list(after.values()) == pytest.approx(list(before.values()), rel=1e-2)


def test_a_batch_of_another_shape(case):
    _, path, _, ranges = case
    with pytest.raises(ExportError, match=r"shape \(2, 3, 4, 4\), expected \(batch, 3, 10, 10\)"):
        quantization_noise(path, ranges, np.zeros((2, 3, 4, 4), np.float32))


def test_ranges_of_another_model(case):
    with pytest.raises(ExportError, match="no range for tensor"):
        quantization_noise(case[1], {}, case[2].numpy())
