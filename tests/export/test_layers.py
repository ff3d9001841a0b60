"""The steps of an INT8 file, back on the layers: the fake-quantized network against onnxruntime on that file."""

from dataclasses import replace

import numpy as np
import pytest
import sessions
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small

from hqp_lightning.errors import ExportError
from hqp_lightning.export import Range, collect_ranges, export_onnx, input_ranges, placements, quantize
from hqp_lightning.surgery import fake_quantized


class Net(nn.Module):
    """Named and declared in another order than it is called."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 5)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Hardswish(),
            nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip

    def forward(self, x):
        return self.head(self.body(x).relu().mean((2, 3)))


def prepared(net):
    torch.manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, -1.5, 1.5)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.normal_(m.running_mean)
    return net.eval()


def files(net, folder, x, activation_type="int8", **options):
    path = folder / "net.onnx"
    export_onnx(net, x[:1], path)
    given = {"activation_type": activation_type}
    ranges = collect_ranges(path, [x.numpy()], method="percentile", percentile=99.0, threads=1, **given)  # clips
    return path, quantize(path, ranges, folder / "net.int8.onnx", **options).path, ranges


def run(path, x):
    session = sessions.session(path)
    return session.run(None, {"input": x.numpy()})[0]


@pytest.mark.parametrize(("exclude", "activation_type"), [(False, "int8"), (True, "int8"), (False, "uint8")])
def test_the_fake_quantized_forward_is_the_files(tmp_path, exclude, activation_type):
    torch.manual_seed(1)  # weights of which no input gets factors or shifts, which the file alone does not tell
    net, x = prepared(Net()), torch.randn(32, 3, 12, 12)
    export_onnx(net, x[:1], tmp_path / "net.onnx")
    second = placements(tmp_path / "net.onnx")[1].node
    float_path, int8_path, ranges = files(net, tmp_path, x, activation_type, exclude=[second] if exclude else [])
    found = input_ranges(float_path, int8_path, net, x[:1], ranges)
    assert list(found) == ["body.0", *([] if exclude else ["body.3"]), "body.5", "head"]
    with torch.no_grad(), fake_quantized(net, found):
        ours = net(x).numpy()
    theirs, plain = run(int8_path, x), run(float_path, x)
    damage = np.abs(theirs - plain).mean()
    assert damage > 5e-3 * np.abs(plain - plain.mean(0)).mean()
    # a value on an edge of the grid may round to either side, which moves the logits of that one sample
    assert np.median(np.abs(ours - theirs)) < 1e-3 * damage
    assert np.abs(ours - theirs).mean() < 0.2 * damage


def test_factors_and_shifts_are_those_of_the_file(tmp_path):
    net, x = prepared(Net()), torch.randn(32, 3, 12, 12)
    path, *_ = files(net, tmp_path, x)
    ranges = collect_ranges(path, [x.numpy()], threads=1)
    tensors = {p.node: p.tensor for p in placements(path)}
    depthwise, pointwise = (tensors[n] for n in list(tensors)[1:3])
    top = ranges[depthwise].high
    ranges[depthwise] = Range.symmetric(top / 2)
    ranges[depthwise] = replace(ranges[depthwise], factors=tuple(np.linspace(0.3, 2, 8).tolist()))
    step = Range.symmetric(ranges[pointwise].high / 4).scale
    ranges[pointwise] = Range(-127 * step, 127 * step, shifts=tuple((step * np.arange(0, 80, 10)).tolist()))
    made = quantize(path, ranges, tmp_path / "made.onnx").path
    with torch.no_grad(), fake_quantized(net, input_ranges(path, made, net, x[:1], ranges)):
        ours = net(x).numpy()
    theirs, plain = run(made, x), run(path, x)
    damage = np.abs(theirs - plain).mean()
    assert np.median(np.abs(ours - theirs)) < 1e-3 * damage
    assert np.abs(ours - theirs).mean() < 0.2 * damage


def test_squeeze_excite_and_fifty_layers(tmp_path):
    torch.manual_seed(0)
    net = prepared(mobilenet_v3_small(num_classes=4))
    float_path, int8_path, _ = files(net, tmp_path, torch.randn(2, 3, 32, 32))
    found = input_ranges(float_path, int8_path, net, torch.zeros(1, 3, 32, 32))
    names = {n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert set(found) == names
    assert len(names) == 54


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return self.a(self.a(x).relu())


class Functional(Twice):
    def forward(self, x):
        return nn.functional.linear(self.a(x).relu(), self.a.weight)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Twice, "'a' is called more than once"),
        (Functional, "calls 1 convolutions and linear layers, .* has 2"),
    ],
)
def test_what_can_not_be_matched_is_refused(net, message, tmp_path):
    torch.manual_seed(0)
    net, x = net(), torch.randn(8, 4)
    *paths, _ = files(net, tmp_path, x)
    with pytest.raises(ExportError, match=message):
        input_ranges(*paths, net, x)


def test_files_of_other_weights_are_refused(tmp_path):
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(8, 4)
    *paths, _ = files(net, tmp_path, x)
    with torch.no_grad():
        net[2].weight[1] *= -2  # one factor for a whole channel is what BatchNorm does
    assert list(input_ranges(*paths, net, x)) == ["0", "2"]
    with torch.no_grad():
        net[2].weight[1, 0] += 0.1
    with pytest.raises(ExportError, match="'2' does not have the weights of '/2/Gemm'"):
        input_ranges(*paths, net, x)
