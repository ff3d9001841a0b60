"""What holds for every network: proved on random ones, the same in every run.

``HQP_EXAMPLES=3000 pytest -s tests/properties`` tries more of them, and says how many of what there were.
"""

import copy
import os
from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from networks import gates_at_inputs
from properties.random_networks import networks

from hqp_lightning.errors import SurgeryError
from hqp_lightning.export import collect_ranges, export_onnx, quantize
from hqp_lightning.surgery import Shadow, apply_cut_, apply_structure_, record, restore_, slice_optimizers_, take

EXAMPLES = int(os.environ.get("HQP_EXAMPLES", "300"))
steadily = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == 300,
    deadline=None,
    phases=[Phase.generate],  # shrinking a network takes minutes; the one that fails is printed
    database=None,
    suppress_health_check=list(HealthCheck),
)
COUNTS = Counter()


@pytest.fixture(scope="module", autouse=True)
def counted():
    yield
    print("\n" + ", ".join(f"{n} {what}" for what, n in COUNTS.items()))


def widths(network):
    return {n: (m.weight.shape[0], m.weight.shape[1]) for n, m in network.named_modules() if hasattr(m, "weight")}


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    s = onnxruntime.InferenceSession(str(path), options)
    return lambda x: s.run(None, {s.get_inputs()[0].name: x})[0]


def channels_of(group, gates):
    return tuple(sorted(k + b * group.gates for k in gates for b in range(group.blocks)))


def compare(dense, cut, removed, groups, inputs):
    """The function is that of the dense network with the same channels zeroed where they are read."""
    gates = {g.name: torch.ones(g.channels, dtype=torch.float64) for g in groups}
    for name, channels in removed.items():
        gates[name][list(channels)] = 0
    masked, pruned = copy.deepcopy(dense).double(), copy.deepcopy(dense)
    gates_at_inputs(masked, gates, groups)
    apply_cut_(pruned, cut)
    with torch.no_grad():
        expected = masked(*[x.double() for x in inputs])
        torch.testing.assert_close(pruned.double()(*[x.double() for x in inputs]), expected, rtol=1e-9, atol=1e-9)


@steadily
@given(networks(), st.integers(1, 7), st.randoms(use_true_random=False))
def test_cut_undo_save_load_export(tmp_path_factory, drawn, eighths, random):
    network, inputs = drawn
    dense, before = copy.deepcopy(network), record(network)
    # A state that equals the parameters: what is sliced out of both by the same hand stays equal.
    optimizer = torch.optim.Adam(network.parameters())
    for p in network.parameters():
        optimizer.state[p] = {"step": torch.tensor(3.0), "exp_avg": 2 * p.detach(), "exp_avg_sq": p.detach() ** 2}
    undo = take(network, [optimizer])

    shadow = Shadow(network, inputs)
    groups = shadow.groups()
    status = Counter(n.status for n in shadow.notes)
    COUNTS.update({"networks": 1, "groups": len(groups), "of these approximate": status["approximate"]})
    removed = {}
    for g in groups:
        gone = random.sample(range(g.gates), min(g.gates - 1, g.gates * eighths // 8))
        emptied = [part for part in g.parts if part <= set(gone)]
        if emptied:
            COUNTS["refused: all that a layer has"] += 1
            with pytest.raises(SurgeryError, match="are all that a layer reads or writes"):
                shadow.cut({g.name: channels_of(g, gone)})
        gone = set(gone) - {random.choice(sorted(part)) for part in emptied}
        if gone:
            removed[g.name] = channels_of(g, gone)
    for name, reason in shadow.unprovable(removed).items():  # a step is made of the others
        COUNTS["refused: " + reason.partition(" (")[0]] += 1
        del removed[name]
    COUNTS.update({"left out": status["left out"], "groups cut": len(removed)})
    approximate = {n.group for n in shadow.notes if n.status == "approximate"}
    if approximate & set(removed):  # by themselves: the others are exact
        exact = {n: c for n, c in removed.items() if n not in approximate}
        compare(dense, shadow.cut(exact), exact, groups, inputs)
    cut = shadow.cut(removed)
    apply_cut_(network, cut)
    slice_optimizers_([optimizer], network, cut)
    if not approximate & set(removed):
        compare(dense, cut, removed, groups, inputs)
    for name, channels in removed.items():
        layers = dict(network.named_modules()), dict(dense.named_modules())
        assert layers[1][name].weight.shape[0] - layers[0][name].weight.shape[0] == len(channels)

    for p in network.parameters():
        assert torch.equal(optimizer.state[p]["exp_avg"], 2 * p.detach())
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], p.detach() ** 2)

    loaded = copy.deepcopy(dense)
    apply_structure_(loaded, type(before).from_plain(record(network).to_plain()))
    loaded.load_state_dict(network.state_dict())
    with torch.no_grad():
        out = network(*inputs)
        assert torch.equal(loaded(*inputs), out)

    if len(inputs) == 1:
        folder = tmp_path_factory.mktemp("onnx")
        export_onnx(network, inputs[0][:1], folder / "float.onnx")
        x = inputs[0].numpy()
        exact = session(folder / "float.onnx")(x)
        np.testing.assert_allclose(exact, out.numpy(), rtol=1e-3, atol=1e-4)
        int8 = quantize(folder / "float.onnx", collect_ranges(folder / "float.onnx", [x], threads=1), folder / "q.onnx")
        noise = session(int8.path)(x) - exact
        assert (noise**2).sum() <= 0.1 * ((exact - exact.mean(0)) ** 2).sum() + 1e-3 * (exact**2).sum()

    restore_(undo, network, [optimizer])
    assert record(network) == before
    was = dense.state_dict()
    assert all(torch.equal(t, was[name]) for name, t in network.state_dict().items())
    for p in network.parameters():
        assert torch.equal(optimizer.state[p]["exp_avg"], 2 * p.detach())
