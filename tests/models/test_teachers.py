import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.models import ImageClassifier, ImageSegmenter, Teacher
from hqp_lightning.models.feature_distance import FeatureDistances
from hqp_lightning.models.teachers import mixed_logits

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def _net(classes=5, width=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


def _loader():
    torch.manual_seed(7)
    return DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 5), 8)


def test_what_is_followed_is_the_mean_of_the_probabilities():
    torch.manual_seed(0)
    logits = [torch.randn(6, 4, 3) * k for k in (1, 5, 20)]
    mean = torch.stack([(x / 3).softmax(1) for x in logits]).mean(0)
    torch.testing.assert_close((mixed_logits(logits, 3.0) / 3).softmax(1), mean)
    assert mixed_logits(logits[:1], 3.0) is logits[0]


def test_the_loss_comes_from_the_dense_network_and_every_further_teacher():
    further = [_net(width=6, seed=1), Teacher(_net(9, seed=2), image_size=12, classes=[8, 0, 3, 1, 2])]
    model = ImageClassifier(_net(), 5, distillation=0.75, temperature=2.0, teachers=further)
    images, labels = _loader().dataset.tensors
    model.eval()
    with torch.no_grad():
        resized = F.interpolate(images, (12, 12), mode="bilinear", antialias=True)
        _, wide, small = model._teachers
        answers = [model.net(images), wide(images), small.net(resized)[:, [8, 0, 3, 1, 2]]]
        wanted = torch.stack([(x / 2).softmax(1) for x in answers]).mean(0)
        model.net[4].weight += 0.5 * torch.randn_like(model.net[4].weight)
        logits = model.net(images)
        q = (logits / 2).softmax(1)
    expected = 0.25 * F.cross_entropy(logits, labels) + 0.75 * 2.0**2 * (wanted * (wanted / q).log()).sum(1).mean()
    model.log = lambda *args, **kwargs: None
    assert model.training_step((images, labels), 0).item() == pytest.approx(float(expected), rel=1e-5)


def test_the_features_of_each_teacher_count_their_mean():
    torch.manual_seed(0)
    together, first, second, layer = (FeatureDistances() for _ in range(4))
    for _ in range(5):
        s, a, b = (torch.randn(32, n) for n in (4, 6, 9))
        x, y = s[:, :3], a[:, :2]
        found = float(together({"": s, "x": x}, {"": a, "x": y}, {"": b}))
        alone = (float(first({"": s}, {"": a})) + float(second({"": s}, {"": b}))) / 2
        assert found == pytest.approx(alone + float(layer({"x": x}, {"x": y})))
    assert found > 1  # noise explains no noise
    resumed = FeatureDistances()
    resumed.load_state_dict(together.state_dict())
    assert float(resumed({"": s}, {"": a}, {"": b})) == float(together({"": s}, {"": a}, {"": b}))


def test_teachers_are_neither_trained_nor_saved(tmp_path):
    further = _net(width=6, seed=1).train()
    before = {n: t.clone() for n, t in further.state_dict().items()}
    model = ImageClassifier(_net(), 5, lr=0.1, distillation=1.0, feature_distillation=1.0, teachers=further)
    L.Trainer(max_epochs=3, default_root_dir=tmp_path, **QUIET).fit(model, _loader(), _loader())
    assert all(torch.equal(t, before[n]) for n, t in further.state_dict().items())
    assert all(p.requires_grad for p in further.parameters())  # the user's own; the teacher is a copy
    assert further.training
    assert not any(p.requires_grad or t.training for t in model._teachers for p in t.parameters())
    assert all(name.startswith("net.") for name in model.state_dict())
    assert "teachers" not in model.hparams


def test_a_better_teacher_teaches_what_labels_do_not_say(tmp_path):
    """Labels of noise and a dense network that knows nothing: what is learnt is the further teacher's."""
    teacher = _net(seed=1).eval()
    with torch.no_grad():
        teacher[4].weight *= 20
    loader = _loader()
    images = loader.dataset.tensors[0]

    def agreement(model):
        with torch.no_grad():
            return float((model(images).softmax(1) - teacher(images).softmax(1)).abs().sum(1).mean())

    found = {}
    for further in ((), (teacher,)):
        model = ImageClassifier(_net(seed=3), 5, lr=0.2, distillation=1.0, temperature=1.0, teachers=further)
        before = agreement(model)
        L.Trainer(max_epochs=40, default_root_dir=tmp_path, **QUIET).fit(model, loader, loader)
        model.eval()
        found[len(further)] = agreement(model) / before
    assert found[1] < 0.7
    assert found[0] > 0.95


def test_a_teacher_of_half_precision_answers_in_float():
    net = _net().eval()
    images = torch.randn(4, 3, 8, 8)
    exact, half = Teacher(net)(images), Teacher(net, dtype="bfloat16")(images)
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(Teacher(net, image_size=8)(images), exact)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_a_teacher_resizes_images_of_any_type(kind):
    images = (255 * torch.rand(4, 3, 8, 8)).to(kind)
    wide = images if kind == torch.uint8 else images.double()  # of bytes torch has an arithmetic of its own
    wanted = nn.functional.interpolate(wide, (12, 12), mode="bilinear", antialias=True).flatten(1)
    found = Teacher(nn.Flatten(), image_size=12)(images)
    torch.testing.assert_close(found, wanted.to(kind).float(), atol=0.0, rtol=1e-2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"image_size": 0}, "image_size must be an integer of at least 1, got 0"),
        ({"image_size": "224"}, "image_size must be an integer of at least 1, got '224'"),
        ({"classes": [1.5]}, r"classes must be different indices of outputs, got \[1.5\]"),
        ({"classes": 3}, "classes must be different indices of outputs, got 3"),
        ({"classes": [0, 0]}, r"classes must be different indices of outputs, got \[0, 0\]"),
        ({"classes": [-1]}, "different indices"),
        ({"classes": []}, "different indices"),
        ({"net": "resnet18"}, r"net must be a network \(torch.nn.Module\), got str"),
    ],
)
def test_a_wrong_teacher_is_refused(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        Teacher(**{"net": _net(), **wrong})


def test_teachers_that_cannot_teach_are_refused():
    with pytest.raises(ConfigurationError, match="teachers need a part of the loss: distillation=0.9"):
        ImageClassifier(_net(), 5, teachers=[_net()])
    for wrong in (["resnet18"], "resnet18", 3):
        with pytest.raises(ConfigurationError, match="teachers must be networks"):
            ImageClassifier(_net(), 5, distillation=0.5, teachers=wrong)
    with pytest.raises(ConfigurationError, match="feature_distillation compares"):
        ImageClassifier(
            _net(), 5, distillation=0.5, feature_distillation=1.0, teachers=[nn.Sequential(nn.Conv2d(3, 5, 8))]
        )
    net = _net()
    assert all(p.requires_grad for p in ImageClassifier(net, 5, distillation=0.5, teachers=[Teacher(net)]).parameters())
    assert len(ImageClassifier(net, 5, distillation=0.5, teachers=nn.ModuleList([_net(), _net()]))._teachers) == 3
    images, labels = _loader().dataset.tensors
    model = ImageClassifier(_net(), 5, distillation=0.5, teachers=[_net(9)])
    with pytest.raises(ConfigurationError, match=r"a teacher answers \(8, 9\), the dense network \(8, 5\): name"):
        model.training_step((images, labels), 0)
    with pytest.raises(ConfigurationError, match="classes go up to 9, the teacher Sequential has 5 outputs"):
        Teacher(_net(), classes=[9])(images)


def test_what_is_followed_of_another_teacher_begins_anew():
    """A resumed run with other teachers, in another order: nothing of what was seen of the others is used."""
    trained = FeatureDistances()
    s, a, b = (torch.randn(32, n) for n in (4, 6, 9))
    for _ in range(3):
        trained({"": s}, {"": a}, {"": b})
    assert float(trained({"": s}, {"": b}, {"": a})) == 0.0
    assert float(trained({"": s}, {"": b}, {"": a})) > 0.0


@pytest.mark.parametrize("wrap", [lambda net: net, Teacher])
def test_layers_of_the_same_name_are_followed_in_a_teacher_as_well(wrap):
    options = {"distillation": 0.5, "feature_distillation": 1.0, "feature_layers": ["0"]}
    model = ImageClassifier(_net(), 5, **options, teachers=[wrap(_net(width=6, seed=1))])
    model.log = lambda *args, **kwargs: None
    batch = _loader().dataset.tensors
    model.training_step(batch, 0)
    assert model._distance.state_dict().keys() == {"", "@1", "0", "0@1"}
    small = nn.Sequential(nn.Conv2d(3, 6, 7), *list(_net(width=6))[1:])
    other = ImageClassifier(_net(), 5, **options, teachers=[wrap(small)])
    with pytest.raises(ConfigurationError, match="'0' of a teacher is of another resolution"):
        other.training_step(batch, 0)


def test_teachers_compute_in_the_type_of_the_network(tmp_path):
    net, loader = _net(), _loader()
    model = ImageClassifier(net, 5, distillation=0.5, teachers=[_net(seed=1)])
    L.Trainer(max_epochs=1, precision="64-true", default_root_dir=tmp_path, **QUIET).fit(model, loader, loader)
    assert {p.dtype for t in model._teachers for p in t.parameters()} == {torch.float64}


def test_a_segmentation_has_teachers_too():
    class Dense(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return {"out": self.conv(x)}

    model = ImageSegmenter(Dense(0), 4, distillation=1.0, temperature=1.0, teachers=[Teacher(Dense(1))])
    images, labels = torch.randn(2, 3, 6, 6), torch.zeros(2, 6, 6, dtype=torch.long)
    with torch.no_grad():
        p, q = (Dense(k)(images)["out"].softmax(1) for k in (0, 1))
        wanted = (p + q) / 2
    model.log = lambda *args, **kwargs: None
    expected = (wanted * (wanted / p).log()).sum(1).mean()
    assert model.training_step((images, labels), 0).item() == pytest.approx(float(expected), rel=1e-4)
