"""Which layers go to float by OpenVINO's time: counters that promise, a clock that decides, both doubled."""

from dataclasses import replace
from itertools import chain, repeat

import pytest
import torch
from torch import nn

from hqp_lightning.export import Range, export_onnx, quantize, quantized_tensors, quicker
from hqp_lightning.export.latency import How
from hqp_lightning.export.options import FileOptions
from hqp_lightning.export.quicker import is_quicker, promising, time_ratios
from hqp_lightning.records import OnnxArtifact
from hqp_lightning.shipping import placing
from hqp_lightning.shipping.known import Known
from hqp_lightning.shipping.placing import left_in_float, less_time


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Float file, Q/DQ file and ranges of five layers, with a hard-swish between two of them."""
    torch.manual_seed(0)
    a, b, c, d = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    module = nn.Sequential(a, nn.ReLU(), b, nn.Hardswish(), c, d, nn.Flatten(), nn.Linear(64, 3)).eval()
    folder = tmp_path_factory.mktemp("quicker")
    export_onnx(module, torch.zeros(1, 3, 12, 12), folder / "m.onnx")
    ranges = dict.fromkeys(quantized_tensors(folder / "m.onnx"), Range.symmetric(1.0))
    quantize(folder / "m.onnx", ranges, folder / "q.onnx")
    return str(folder / "m.onnx"), str(folder / "q.onnx"), ranges


LAYERS = ["/0/Conv", "/2/Conv", "/4/Conv", "/5/Conv", "/7/Gemm"]


def test_counters_promise_where_float_takes_less_with_the_quantizer_before(net, monkeypatch):
    float_path, int8_path, _ = net
    swish = "/3/HardSwish"

    def counted(paths, batches, threads):
        assert paths == [int8_path, float_path]
        assert [b.shape for b in batches] == [(1, 3, 12, 12)] * 2
        int8 = [((n,), 2.0) for n in LAYERS] + [((swish, f"{swish}_output_0_quantize"), 9.0)]
        return int8, [(("/0/Conv",), 9.0), ((swish,), 5.0), *(((n,), 2.5) for n in LAYERS[1:])]

    monkeypatch.setattr(quicker, "openvino_counters", counted)
    # Of the convolution behind the hard-swish: 2 - 2.5 and 9 - 5; the four together: that, and -7, -0.5, -0.5
    assert promising(float_path, int8_path, LAYERS, How()) == [("/4/Conv",)]


@pytest.mark.parametrize(
    ("quotients", "builds", "taken"),
    [
        ([0.9] * 9, 9, True),
        ([1.3, *[0.9] * 8], 9, True),  # one build in nine may be unlucky
        ([0.9, 1.1, 0.9, 1.0], 4, False),  # the second that is no quicker ends it
        ([0.995] * 9, 9, False),  # less than the clock can tell
    ],
)
def test_builds_of_both_in_changing_order_until_it_is_sure(quotients, builds, taken, monkeypatch):
    asked = []

    def ms(files, how, turns):
        asked.append([path for path, _ in files])
        now = {"now": 2.0, "tried": 2.0 * quotients[len(asked) - 1]}
        return [now[path] for path, _ in files]

    monkeypatch.setattr(quicker, "network_ms", ms)
    found = time_ratios("now", "tried", How())
    assert found == pytest.approx(quotients)
    assert asked == [["now", "tried"], ["tried", "now"]] * (builds // 2) + [["now", "tried"]] * (builds % 2)
    assert is_quicker(found) == taken


def test_an_interrupted_search_by_time_goes_on(net, tmp_path, monkeypatch):
    float_path, _, ranges = net
    promised, said = (
        [["/2/Conv", "/4/Conv"], ["/2/Conv"], ["/5/Conv"]],
        iter(chain([[0.9] * 9, OSError], repeat([2.0]))),
    )

    def ratios(now, tried, how):
        if (answer := next(said)) is OSError:
            raise OSError("the power went")
        return answer

    def search():
        known = Known(tmp_path / "placement.json", {})
        return less_time(float_path, ranges, ["/0/Conv"], LAYERS[1:], How(), known)

    monkeypatch.setattr(placing, "promising", lambda *_: promised)
    monkeypatch.setattr(placing, "time_ratios", ratios)
    with pytest.raises(OSError, match="the power went"):
        search()
    monkeypatch.setattr(placing, "promising", None)
    assert search() == ("/0/Conv", "/2/Conv", "/4/Conv")
    said = iter(())
    assert search() == ("/0/Conv", "/2/Conv", "/4/Conv")


def test_the_placement_by_time_in_an_export_and_what_it_is_without_openvino(net, tmp_path, monkeypatch, caplog):
    float_path, _, ranges = net
    options = FileOptions("mse", "uint8", "timed", False, False, ("openvino",), (), 2, 1, 1)
    artifact = OnnxArtifact(float_path, 1, "sha", 17, (), ())
    seen = []

    def ratios(now, tried, how):
        seen.append(how)
        return [0.9] * 9

    caplog.set_level("INFO", "hqp_lightning")
    monkeypatch.setattr(placing.export, "unprofitable", lambda _: ("/0/Conv",))
    monkeypatch.setattr(placing, "promising", lambda path, int8, layers, how: [["/5/Conv"]])
    monkeypatch.setattr(placing, "time_ratios", ratios)
    assert left_in_float(artifact, ranges, options, tmp_path) == ("/0/Conv", "/5/Conv")
    assert seen == [How(threads=1, batch_size=2)]
    assert "placement='timed' leaves in float, too: /5/Conv" in caplog.text
    elsewhere = replace(options, engines=("onnxruntime",))
    assert left_in_float(artifact, ranges, elsewhere, tmp_path) == ("/0/Conv",)
    assert "placement='timed' is 'paying' here: engines=['onnxruntime'] has no 'openvino'" in caplog.text
