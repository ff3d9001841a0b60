import copy
import pickle
import shutil

import pytest
import torch
from torch import nn

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.models import ImageClassifier, ImageSegmenter, Teacher
from hqp_lightning.models.asking import Ask

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
# How torch itself warns where it compiles.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Net(nn.Module):
    def __init__(self, width, classes=5):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Hardswish())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.stage(x).mean((2, 3)))


def teachers():
    torch.manual_seed(0)
    nets = [Net(4), Teacher(Net(6, 9), image_size=12, classes=[8, 0, 3, 1, 2])]
    for norm in (m for net in nets for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.running_var)
        nn.init.normal_(norm.running_mean)
    return [net.eval().requires_grad_(False) for net in nets]


def logits_of(answer):
    return answer


@needs_compiler
def test_what_is_compiled_answers_the_same_features_and_all():
    nets = teachers()
    plain, compiled = (Ask(nets, logits_of, ["stage"], c) for c in (False, True))
    for size in (8, 8, 3):  # once more, and a smaller batch
        images = torch.randn(size, 3, 10, 10)
        (logits, features), (wanted, expected) = compiled(images), plain(images)
        torch.testing.assert_close(wanted[0], nets[0](images))
        torch.testing.assert_close(logits, wanted)
        torch.testing.assert_close(features, expected)
        assert [set(f) for f in features] == [{"", "stage"}] * 2
    nets[0].head.weight.mul_(2)
    compiled.to(images)
    torch.testing.assert_close(compiled(images)[0], logits)  # the weights are constants of it,
    compiled.to(images.double())
    torch.testing.assert_close(compiled(images.double())[0], plain(images.double())[0])  # read again in another type


@needs_compiler
def test_a_training_step_with_compiled_teachers_has_the_same_loss():
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, 10, 10), torch.arange(8) % 5
    losses = []
    for compiled in (False, True):
        torch.manual_seed(2)
        model = ImageClassifier(Net(4), 5, distillation=0.9, teachers=teachers(), compile_teachers=compiled)
        model.log = lambda *args, **kwargs: None
        model.net.head.weight.data.mul_(3)
        losses.append(float(model.training_step((images, labels), 0).detach()))
        other = copy.deepcopy(model)  # as callbacks take them
        losses.append(float(other.training_step((images, labels), 0).detach()))
        del model.log
        pickle.loads(pickle.dumps(model))
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


@needs_compiler
def test_programs_of_other_networks_do_not_count(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)  # one for each network, and no more
    images = torch.randn(2, 3, 10, 10)
    for width in range(3, 13):
        torch.manual_seed(width)
        net = Net(width).eval().requires_grad_(False)
        ask = Ask([net], logits_of, compiled=True)
        (logits,), _ = ask(images)
        torch.testing.assert_close(logits, net(images))
        before = logits.clone()
        net.head.bias.add_(1)
        torch.testing.assert_close(ask(images)[0][0], before)  # a program, not the network


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_a_network_that_does_not_take_the_images_is_told_by_name_and_shape(compiled):
    class Patches(nn.Module):
        def forward(self, x):
            torch._assert(x.shape[-1] == 224, "Wrong image width")  # as torchvision's ViT says it
            return x.mean((2, 3))

    for net, why in ((nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), "mat1 and mat2.*300"), (Patches(), "Wrong image")):
        ask = Ask([Net(4).eval(), Teacher(net)], logits_of, compiled=compiled)
        name = type(net).__name__
        with pytest.raises(
            ConfigurationError, match=rf"followed, {name}, failed on images \(2, 3, 10, 10\) of float32 \({why}"
        ):
            ask(torch.randn(2, 3, 10, 10))


def test_a_student_whose_module_overrides_forward_sees_what_its_teachers_see():
    class Shifted(ImageClassifier):
        def forward(self, images):
            return super().forward(images - 2)

    model = Shifted(Net(4), 5, distillation=1.0)
    model.log = lambda *args, **kwargs: None
    model.net.eval()
    images, labels = torch.randn(8, 3, 10, 10), torch.arange(8) % 5
    assert float(model.training_step((images, labels), 0).detach()) < 1e-6
    with torch.no_grad():
        model.net.head.bias.add_(torch.arange(5.0))  # no longer its teacher
        soft = nn.functional.log_softmax(model._teachers[0](images - 2) / 4, 1)
        own = nn.functional.log_softmax(model.net(images - 2) / 4, 1)
        expected = 16 * nn.functional.kl_div(own, soft, reduction="batchmean", log_target=True)
    torch.testing.assert_close(model.training_step((images, labels), 0).detach(), expected)
    alone = Shifted(Net(4), 5)
    alone.log = model.log
    alone.net.eval()
    wanted = nn.functional.cross_entropy(alone.net(images - 2), labels)
    torch.testing.assert_close(alone.training_step((images, labels), 0), wanted)


def test_a_network_that_is_called_in_parts_or_twice_has_no_images_to_show():
    class Parts(ImageClassifier):
        def forward(self, images):
            return self.net.head(self.net.stage(images).mean((2, 3)))

    class Twice(ImageClassifier):
        def forward(self, images):
            return self.net(images) + self.net(images.flip(3))

    for kind, times in ((Parts, 0), (Twice, 2)):
        model = kind(Net(4), 5, distillation=0.9)
        with pytest.raises(ConfigurationError, match=rf"Net is given: forward .* once, not {times} times"):
            model.training_step((torch.randn(8, 3, 10, 10), torch.arange(8) % 5), 0)
        assert not model.net._forward_pre_hooks


def test_a_hook_that_changes_images_changes_them_once_for_everyone():
    net = Net(4).eval()
    net.register_forward_pre_hook(lambda _, args: ((args[0] - 3) / 2,))
    model = ImageClassifier(net, 5, distillation=1.0)
    model.log = lambda *args, **kwargs: None
    assert float(model.training_step((torch.randn(8, 3, 10, 10), torch.arange(8) % 5), 0).detach()) < 1e-6


def test_compiling_nothing_is_refused():
    for compiled, part in ((True, 0.0), ("no", 0.9), (None, 0.9)):
        with pytest.raises(ConfigurationError, match="compile_teachers=.* must be True or False"):
            ImageClassifier(Net(4), 5, distillation=part, compile_teachers=compiled)


@needs_compiler
def test_what_cannot_be_compiled_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    ask = Ask([Net(7).eval()], logits_of, compiled=True)
    with pytest.raises(ConfigurationError, match="compile_teachers=True.*Net.*leave it False"):
        ask(torch.randn(2, 3, 10, 10))


def test_a_segmentation_asks_for_its_output():
    class Seg(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return {"out": self.conv(x)}

    model = ImageSegmenter(Seg(), 4, distillation=0.5)
    model.log = lambda *args, **kwargs: None
    images = torch.randn(2, 3, 6, 6)
    (logits,), _ = model._ask(images)
    torch.testing.assert_close(logits, model.net(images)["out"])
