"""BatchNorm in a teacher: the same answers with it folded away, against the network as it was."""

import pytest
import torch
import torchvision
from torch import nn

from hqp_lightning.models import ImageClassifier, Teacher
from hqp_lightning.models.folding import folded


def _norms(net):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())


def _settled(net):
    """With statistics and weights of its own in every BatchNorm."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
    return net.eval()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "densenet121"])
def test_the_answers_stay(name):
    net = _settled(getattr(torchvision.models, name)(num_classes=5)).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    made = folded(net)
    assert _norms(made) < _norms(net)
    torch.testing.assert_close(made(images), net(images))
    assert [n for n, _ in made.named_modules()] == [n for n, _ in net.named_modules()]


class Twice(nn.Module):
    """One convolution before two norms, one norm twice, and a convolution that is read past its norm."""

    def __init__(self):
        super().__init__()
        self.shared, self.twice, self.read = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.a, self.b, self.c, self.plain = (nn.BatchNorm2d(4, affine=k < 3) for k in range(4))
        self.alias, self.last = self.twice, nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.a(self.shared(x)) + self.b(self.shared(x))
        x = self.c(self.twice(x)) + self.alias(x)
        y = self.read(x)
        return self.plain(self.last(self.plain(y) + y))


def test_what_serves_twice_stays():
    net = _settled(Twice()).double()
    images = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    made = folded(net)
    torch.testing.assert_close(made(images), net(images))
    assert _norms(made) == 4


class Tied(nn.Module):
    """A convolution whose weight is read by itself as well."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return nn.functional.conv2d(self.norm(self.conv(x)), self.conv.weight)


def test_a_weight_that_is_read_by_itself_stays():
    net = _settled(Tied()).double()
    images = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(folded(net)(images), net(images))


@pytest.mark.parametrize(("whole", "left"), [(("0.0",), 1), (("0",), 0), (("1",), 0), (("2",), 1), ((), 0)])
def test_what_is_looked_at_answers_as_before(whole, left):
    stem = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    net = _settled(nn.Sequential(stem, nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4))).double()
    made, seen = folded(net, whole), []
    assert _norms(made) == left
    for of in (net, made):
        for name in whole:
            of.get_submodule(name).register_forward_hook(lambda module, args, out: seen.append(out))
        of(torch.ones(1, 4, 2, 2, dtype=torch.float64))
    for k in range(len(whole)):
        torch.testing.assert_close(seen[k], seen[len(whole) + k])


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.net(x) if x.mean() > 0 else x


def test_a_network_that_cannot_be_traced_is_copied_as_it_is():
    net = _settled(Deciding())
    made = folded(net)
    assert made is not net
    assert _norms(made) == 1
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(made(images), net(images))


def test_teachers_are_folded_and_the_network_is_not():
    def network():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))

    own, other, resized = (_settled(network()) for _ in range(3))
    model = ImageClassifier(own, 5, distillation=0.9, teachers=[other, Teacher(resized, image_size=8)])
    assert _norms(model.net) == _norms(other) == _norms(resized) == 1
    assert [_norms(t) for t in model._teachers] == [0, 0, 0]
    images = torch.rand(2, 3, 8, 8)
    for teacher, net in zip(model._teachers, (own, other, resized), strict=True):
        torch.testing.assert_close(teacher(images), net(images), rtol=1e-4, atol=1e-5)
