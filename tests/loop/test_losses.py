"""The loss that fits the targets, against torch's own; and refusals that say which to pass."""

import pytest
import torch
from classifier import Classifier
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import ConfigurationError, FisherAccumulator, HQPPruning
from hqp_lightning.core.calls import Call
from hqp_lightning.loop.losses import default_loss
from hqp_lightning.loop.network import per_sample_loss

torch.manual_seed(0)
CLASSES, LABELS = torch.randint(0, 5, (4,)), torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]] * 2)[:4]
LOGITS, ONE, MAP, ONE_MAP = torch.randn(4, 5), torch.randn(4, 1), torch.randn(4, 5, 3, 2), torch.randn(4, 1, 3, 2)
YES = torch.tensor([1, 0, 0, 1])
SOFT = torch.randn(4, 5).softmax(1)
PIXELS = torch.randint(0, 5, (4, 3, 2))


def cross_entropy(z, y):
    return F.cross_entropy(z, y, reduction="none")


def binary(z, y):
    return F.binary_cross_entropy_with_logits(z, y.float(), reduction="none").flatten(1).mean(1)


@pytest.mark.parametrize(
    ("logits", "y", "expected"),
    [
        (LOGITS, CLASSES, cross_entropy(LOGITS, CLASSES)),
        (LOGITS, CLASSES.int(), cross_entropy(LOGITS, CLASSES)),
        (LOGITS, SOFT, cross_entropy(LOGITS, SOFT)),
        (LOGITS, F.one_hot(CLASSES, 5), cross_entropy(LOGITS, CLASSES)),
        (MAP, PIXELS, cross_entropy(MAP, PIXELS).mean((1, 2))),
        (LOGITS, LABELS.float(), binary(LOGITS, LABELS)),
        (LOGITS, LABELS, binary(LOGITS, LABELS)),
        (ONE, YES, binary(ONE, YES[:, None])),
        (ONE, YES.bool(), binary(ONE, YES[:, None])),
        (ONE[:, 0], YES.float(), binary(ONE, YES[:, None])),
        (ONE, YES[:, None].float(), binary(ONE, YES[:, None])),
        (ONE_MAP, (PIXELS > 2).long(), binary(ONE_MAP, (PIXELS > 2)[:, None])),
        (ONE, ONE * 0.1, (0.9 * ONE).square()[:, 0]),
        (ONE, SOFT[:, :1], F.mse_loss(ONE, SOFT[:, :1], reduction="none")[:, 0]),
        (LOGITS, 3 * LOGITS, (2 * LOGITS).square().mean(1)),
        (LOGITS.bfloat16(), CLASSES, cross_entropy(LOGITS.bfloat16().float(), CLASSES)),
        (LOGITS.double(), CLASSES, cross_entropy(LOGITS.double(), CLASSES)),
    ],
)
def test_the_loss_that_fits(logits, y, expected):
    torch.testing.assert_close(default_loss(logits, y), expected)


def test_ignored_pixels_cost_nothing():
    y = PIXELS.clone()
    y[:, 0] = -100
    expected = cross_entropy(MAP, PIXELS)
    expected[:, 0] = 0
    torch.testing.assert_close(default_loss(MAP, y), expected.mean((1, 2)))


def test_pixels_of_class_255_and_a_dict_of_one_output():
    y = PIXELS.to(torch.uint8)
    y[:, 0] = 255
    expected = cross_entropy(MAP, PIXELS)
    expected[:, 0] = 0
    torch.testing.assert_close(default_loss({"out": MAP}, y), expected.mean((1, 2)))
    with pytest.raises(ConfigurationError, match="class 255 is none of 5 outputs"):
        default_loss(LOGITS, torch.tensor([255, 0, 1, 2]))


@pytest.mark.parametrize(
    ("logits", "y", "why"),
    [
        (
            LOGITS,
            LABELS.float() * 0.5,
            "may be soft labels or a regression",
        ),
        (ONE, CLASSES + 2, "neither classes nor yes and no"),
        (LOGITS, CLASSES + 3, "is none of 5 outputs"),
        (LOGITS, torch.rand(4), "no usual loss takes these shapes"),
        (LOGITS, torch.rand(4, 3), "no usual loss takes these shapes"),
        (LOGITS, CLASSES[:3], "no usual loss takes these shapes"),
        ({"out": LOGITS, "aux": LOGITS}, CLASSES, "returns no tensor of logits.*got dict"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused_with_the_one_to_pass(logits, y, why):
    with pytest.raises(ConfigurationError, match=f"{why}.*Pass loss_fn=.*, for soft labels F.binary.*F.mse_loss"):
        default_loss(logits, y)


def test_copies_for_test_time_augmentation_are_left_out():
    network, x = nn.Linear(3, 5), torch.randn(4, 3)
    flipped = Call((torch.cat([x, x.flip(1)]),))
    expected = cross_entropy(network(x), CLASSES)
    torch.testing.assert_close(per_sample_loss(None, network, (x, CLASSES), None, flipped), expected)


class Ages(Classifier):
    """A regression, validated by its error."""

    def __init__(self):
        super().__init__()
        self.net[-1] = nn.Linear(64, 1)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self.net(batch[0]), batch[1]))


def test_the_saliency_of_a_regression_is_that_of_the_squared_error(digits, make_trainer):
    x, y = digits[0][:64], digits[1][:64, None].float() / 10
    fisher, model = FisherAccumulator(), Ages()
    make_trainer(1, [fisher]).validate(model, DataLoader(TensorDataset(x, y), 32), verbose=False)
    z = torch.ones(64, 1, 64, 1, 1, requires_grad=True)  # a gate per sample and channel of the last convolution
    model.eval()
    features = model.net[:7](x)
    out = model.net[8:](model.net[7](features).relu() * z[:, 0])
    (gradient,) = torch.autograd.grad((out - y).square().sum(), z)
    torch.testing.assert_close(fisher.saliency()["7"], gradient.flatten(1).square().mean(0), rtol=1e-3, atol=1e-7)


def test_a_misfit_is_told_before_training_also_where_pruning_starts_late(digits, make_trainer):
    class Never(Ages):
        def training_step(self, batch, batch_idx):
            raise AssertionError("training began before the refusal")

    data = DataLoader(TensorDataset(digits[0][:64], digits[1][:64, None]), 32)
    pruning = HQPPruning("val_mse", 0.1, mode="min", start_epoch=5)
    with pytest.raises(ConfigurationError, match="one output and integers up to 9 are neither classes nor yes and no"):
        make_trainer(1, [pruning], num_sanity_val_steps=1).fit(Never(), data, data)
