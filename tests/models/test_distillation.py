import lightning as L
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.models import ImageClassifier, build_network
from hqp_lightning.models.distillation import feature_reader, with_features
from hqp_lightning.models.feature_distance import FeatureDistance, FeatureDistances


def _batches(count, student=6, teacher=9, size=32, noise=0.0):
    torch.manual_seed(0)
    mix, offset = torch.randn(student, teacher), torch.randn(teacher)
    for _ in range(count):
        s = torch.randn(size, student) * 2 + 1
        yield s, s @ mix + offset + noise * torch.randn(size, teacher)


def test_what_a_linear_function_explains_is_no_distance():
    distance, found = FeatureDistance(), []
    for s, t in _batches(12):
        found.append(float(distance(s, t)))
    assert found[0] == 0.0  # 32 samples would be explained by chance
    assert max(found[1:]) < 1e-3  # what the ridge shrinks


def test_the_rest_is_that_of_a_ridge_regression_on_the_batches_before():
    batches = list(_batches(9, noise=3.0))
    distance = FeatureDistance()
    *_, (s, t) = batches
    found = [float(distance(x, y)) for x, y in batches][-1]
    before, wanted = (torch.cat(part).numpy() for part in zip(*batches[:-1], strict=True))
    alpha = 1e-2 * float((before**2).mean()) * len(before)
    expected = Ridge(alpha).fit(before, wanted)
    residual = ((expected.predict(s.numpy()) - t.numpy()) ** 2).mean() / wanted.var(0).mean()
    assert found == pytest.approx(residual, rel=2e-2)  # scikit-learn's ridge is centred, ours has a free constant
    assert found > 0.1


def test_the_gradient_goes_to_the_student_alone_and_a_narrower_one_begins_anew():
    distance = FeatureDistance()
    for s, t in _batches(4, noise=1.0):
        s.requires_grad_()
        t.requires_grad_()
        last = distance(s, t)
    last.backward()
    assert float(s.grad.abs().max()) > 0
    assert t.grad is None or float(t.grad.abs().max()) == 0
    assert float(distance(s.detach()[:, :4], t.detach())) == 0.0


def test_what_diverged_leaves_nothing_behind():
    clean, spoiled = FeatureDistance(), FeatureDistance()
    for i, (s, t) in enumerate(_batches(6, noise=1.0)):
        if i == 3:
            assert not spoiled(s * float("nan"), t).isfinite()
        assert float(spoiled(s, t)) == float(clean(s, t))


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path):
    def run(epochs, **kwargs):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        options = {"distillation": 0.5, "feature_distillation": 1.0, "feature_layers": ["0"]}
        model = ImageClassifier(net, 5, lr=0.05, schedule="constant", **options)
        data = torch.utils.data.TensorDataset(torch.randn(64, 3, 8, 8), torch.arange(64) % 5)
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", enable_model_summary=False, limit_val_batches=0, **options
        )
        loader = torch.utils.data.DataLoader(data, 16)
        trainer.fit(model, loader, loader, **kwargs)
        return trainer, model.state_dict()

    half, _ = run(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, straight = run(4)
    _, resumed = run(4, ckpt_path=tmp_path / "half.ckpt")
    assert all(torch.equal(v, straight[k]) for k, v in resumed.items())


@pytest.mark.parametrize(
    ("name", "reader", "width"), [("resnet18", "fc", 512), ("mobilenet_v3_small", "classifier.0", 576)]
)
def test_features_are_what_the_classifier_reads(name, reader, width):
    net = build_network(name, num_classes=10).eval()
    assert feature_reader(net) == reader
    logits, features = with_features(net, lambda: net(torch.zeros(2, 3, 32, 32)))
    assert logits.shape == (2, 10)
    assert {k: x.shape for k, x in features.items()} == {"": (2, width)}
    assert not net.get_submodule(reader)._forward_pre_hooks


def test_outputs_of_layers_are_followed_at_sixteen_positions():
    net = build_network("resnet18", num_classes=10).eval()
    images, stages = torch.randn(2, 3, 160, 160), ("layer1", "layer4.1.bn2", "avgpool")
    seen = []
    handles = [net.get_submodule(n).register_forward_hook(lambda *a: seen.append(a[2])) for n in stages]
    _, features = with_features(net, lambda: net(images), stages)
    for handle in handles:
        handle.remove()
    assert list(features) == ["layer1", "layer4.1.bn2", "avgpool", ""]
    # 40 x 40 positions, 4 x 4 of them in each mean; row 5 is that of the second row and column
    assert features["layer1"].shape == (32, 64)
    torch.testing.assert_close(features["layer1"][5], seen[0][0, :, 10:20, 10:20].mean((1, 2)))
    assert features["layer4.1.bn2"].shape == (32, 512)
    torch.testing.assert_close(features["avgpool"], seen[2].flatten(1))
    torch.testing.assert_close(features[""], features["avgpool"])
    assert not any(m._forward_hooks for m in net.modules())


def test_distances_of_layers_count_half_and_one_that_is_gone_nothing():
    alone = {name: FeatureDistance() for name in ("", "a", "b")}
    together = FeatureDistances()
    for s, t in _batches(5, noise=2.0):
        of = {"": (s, t), "a": (s[:, :3], t[:, :4]), "b": (s[:, 3:], t)}
        a, b, c = (float(alone[n](*of[n])) for n in ("", "a", "b"))
        student, teacher = ({n: pair[k] for n, pair in of.items()} for k in (0, 1))
        assert float(together(student, teacher)) == pytest.approx(a + 0.5 * b + 0.5 * c)
    del student["b"]
    resumed = FeatureDistances()
    resumed.load_state_dict(together.state_dict())
    assert float(together(student, teacher)) == pytest.approx(
        float(alone[""](*of[""])) + 0.5 * float(alone["a"](*of["a"]))
    )
    assert together.state_dict().keys() == resumed.state_dict().keys() == {"", "a", "b"}


def test_layers_that_are_not_there_or_return_no_tensor_are_told():
    net = build_network("resnet18", num_classes=10)
    options = {"distillation": 0.5, "feature_distillation": 1.0}
    with pytest.raises(ConfigurationError, match=r"ResNet has no module 'layer5'; it has layer4"):
        ImageClassifier(net, 10, **options, feature_layers=["layer5"])
    with pytest.raises(ConfigurationError, match="needs a weight: feature_distillation=1"):
        ImageClassifier(net, 10, distillation=0.5, feature_layers=["layer1"])

    for wrong in ("layer1", b"layer1", nn.ReLU(), 1):
        with pytest.raises(ConfigurationError, match="must be a list of names"):
            ImageClassifier(net, 10, **options, feature_layers=wrong)
    with pytest.raises(ConfigurationError, match="has no module 1"):
        ImageClassifier(net, 10, **options, feature_layers=[1])
    assert ImageClassifier(net, 10, **options, feature_layers=None).hparams["feature_layers"] == ()
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(ConfigurationError, match=r"'layer1.0.relu' is called more than once"):
        with_features(net, lambda: net(images), ("layer1.0.relu",))
    net.spare = nn.ReLU()
    with pytest.raises(ConfigurationError, match=r"\['spare'\] are not called by the network"):
        with_features(net, lambda: net(images), ("layer1", "spare"))
    assert not any(m._forward_hooks for m in net.modules())

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.fc = Pair(), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.pair(x)[0])

    with pytest.raises(ConfigurationError, match=r"'pair' returns no tensor \[B, C\] or \[B, C, H, W\]"):
        with_features(net := Net(), lambda: net(torch.zeros(2, 4)), ("pair",))


def test_training_pulls_the_features_back(tmp_path):
    """Labels and logits that say nothing: the features alone bring a disturbed network back to its teacher's."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )  # fmt: skip
    model = ImageClassifier(net, 5, lr=0.05, distillation=1e-6, feature_distillation=1.0, weight_decay=0.0)
    with torch.no_grad():
        net[0].weight[:6] = 0.0
    images = torch.randn(64, 3, 8, 8)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(64) % 5), 64)
    (teacher,) = model._teachers

    def unexplained():
        with torch.no_grad():
            s, t = (n[:4](images).double() for n in (net, teacher))
        s1 = torch.cat([s, torch.ones(64, 1, dtype=s.dtype)], 1)
        return float((s1 @ torch.linalg.lstsq(s1, t, driver="gelsd").solution - t).square().mean() / t.var(0).mean())

    before = unexplained()
    options = {"limit_val_batches": 0, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_epochs=60, accelerator="cpu", enable_model_summary=False, **options).fit(model, data, data)
    assert unexplained() < 0.7 * before


def test_a_network_without_such_a_layer_is_refused():
    with pytest.raises(ConfigurationError, match="feature_distillation compares"):
        ImageClassifier(nn.Sequential(nn.Linear(4, 8), nn.Conv2d(8, 2, 1)), 2, distillation=0.5, feature_distillation=1)
