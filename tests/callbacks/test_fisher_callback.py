import pytest
import torch
from classifier import Classifier
from lightning.pytorch.plugins import MixedPrecision

from hqp_lightning import FisherAccumulator


def explicit_gate_fisher(net, x, y, gated):
    """Mean over samples of (dL/dz)^2, one sample at a time, z a mask at the input of layer ``gated``."""
    total = 0
    for n in range(len(x)):
        z = torch.ones(
            1, net[gated].weight.shape[1], *([1, 1] if net[gated].weight.dim() == 4 else []), requires_grad=True
        )
        handle = net[gated].register_forward_pre_hook(lambda _, args, z=z: (args[0] * z,))
        loss = torch.nn.functional.cross_entropy(net(x[n : n + 1]), y[n : n + 1])
        handle.remove()
        total = total + torch.autograd.grad(loss, z)[0].flatten() ** 2
    return total / len(x)


@pytest.mark.parametrize("run", ["fit", "validate"])
def test_matches_an_explicit_mask_in_fit_and_in_validate(loaders, make_trainer, digits, run):
    fisher, model = FisherAccumulator(), Classifier()
    trainer = make_trainer(1, [fisher], limit_train_batches=1)
    trainer.fit(model, *loaders) if run == "fit" else trainer.validate(model, loaders[1], verbose=False)
    x, y = digits
    scores = fisher.saliency()
    assert set(scores) == {"0", "3", "7"}
    for root, consumer in {"0": 3, "3": 7, "7": 11}.items():
        expected = explicit_gate_fisher(model.net.eval(), x[1200:1400], y[1200:1400], consumer)
        torch.testing.assert_close(scores[root], expected, rtol=1e-3, atol=1e-8)


def test_leaves_no_trace(small_loaders, make_trainer):
    fisher, model = FisherAccumulator(), Classifier()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    trainer = make_trainer(1, [fisher])
    (with_fisher,) = trainer.validate(model, small_loaders[1], verbose=False)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    (without,) = make_trainer(1, []).validate(model, small_loaders[1], verbose=False)
    assert with_fisher == without


def test_batches_limits_the_cost(loaders, make_trainer):
    fisher = FisherAccumulator(batches=2)
    make_trainer(1, [fisher]).validate(Classifier(), loaders[1], verbose=False)
    assert fisher.state.samples == 128


def test_the_sanity_check_is_ignored_and_every_validation_starts_anew(loaders, make_trainer):
    fisher = FisherAccumulator()
    make_trainer(2, [fisher], num_sanity_val_steps=2).fit(Classifier(), *loaders)
    assert fisher.state.samples == 200


def test_the_weight_estimator_sums_a_filter(loaders, make_trainer, digits):
    fisher, model = FisherAccumulator(estimator="weight"), Classifier()
    make_trainer(1, [fisher]).validate(model, loaders[1], verbose=False)
    x, y = digits
    net, expected = model.net.eval(), torch.zeros(64)
    for n in range(1200, 1400):
        loss = torch.nn.functional.cross_entropy(net(x[n : n + 1]), y[n : n + 1])
        weight, bias = torch.autograd.grad(loss, [net[7].weight, net[7].bias])
        expected += weight.square().sum((1, 2, 3)) + bias.square()
    torch.testing.assert_close(fisher.saliency()["7"], expected / 200, rtol=1e-3, atol=1e-8)


def test_under_bfloat16_autocast_the_ranking_is_that_of_float32(small_loaders, make_trainer):
    model, scores = Classifier(), {}
    for precision in ("32-true", "bf16-mixed"):
        fisher = FisherAccumulator()
        make_trainer(1, [fisher], precision=precision).validate(model, small_loaders[1], verbose=False)
        scores[precision] = torch.cat(list(fisher.saliency().values()))
    correlation = torch.corrcoef(torch.stack([s.clamp_min(1e-9).log() for s in scores.values()]))[0, 1]
    assert correlation > 0.99


def test_under_float16_autocast_small_gradients_are_those_of_float32(small_loaders, make_trainer):
    model, scores = Classifier(), {}
    model.net[-1].weight.data.mul_(1e-5)  # float16 ends at 6e-8
    for name, settings in {"float32": {}, "float16": {"plugins": [MixedPrecision("16-mixed", "cpu")]}}.items():
        fisher = FisherAccumulator()
        make_trainer(1, [fisher], **settings).validate(model, small_loaders[1], verbose=False)
        scores[name] = torch.cat(list(fisher.saliency().values()))
    exact = scores["float32"]
    assert float(exact.max()) > 0
    assert float((scores["float16"] - exact).norm() / exact.norm()) < 0.02
    assert ((scores["float16"] > 0) == (exact > 0)).all()


def test_a_part_of_the_batches_lies_evenly_in_a_validation_that_comes_class_by_class(loaders, make_trainer):
    """The first batches of a sorted folder would rank channels by two classes of ten."""
    x, y = loaders[1].dataset.tensors
    order = y.argsort()
    data = torch.utils.data.TensorDataset(x[order], y[order])
    loader = torch.utils.data.DataLoader(data, 10)
    seen, fisher = [], FisherAccumulator(batches=5)
    update = fisher.update
    fisher.update = lambda t, m, batch, i: (seen.append(i), update(t, m, batch, i))
    make_trainer(1, [fisher]).validate(Classifier(), loader, verbose=False)
    assert seen == [0, 4, 8, 12, 16]
    assert fisher.state.samples == 50
