"""Segmentation networks against torchvision's own, and the score against a count of pixels."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.segmentation import lraspp

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.models import ImageSegmenter, build_segmentation


def test_lraspp_on_the_small_network_is_as_torchvision_builds_it():
    theirs = lraspp._lraspp_mobilenetv3(torchvision.models.mobilenet_v3_small(dilated=True), 3).eval()
    ours = build_segmentation("lraspp_mobilenet_v3_small", 3).eval()
    state = {k.replace("backbone.", "backbone.layers."): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)["out"], theirs(x)["out"])


def test_others_of_torchvision_and_what_is_none():
    net = build_segmentation("lraspp_mobilenet_v3_large", 4, bn_momentum=0.2)
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.2}
    with pytest.raises(ConfigurationError, match="no segmentation network 'resnet18' with 4 classes; there are lraspp"):
        build_segmentation("resnet18", 4)


class Given(nn.Module):
    def forward(self, images):
        return {"out": images}


def test_the_score_is_the_mean_of_intersection_over_union_without_unlabelled_pixels():
    module = ImageSegmenter(Given(), num_classes=2)
    says = torch.tensor([[[0, 0], [1, 1]], [[0, 1], [1, 1]]])
    labels = torch.tensor([[[0, 1], [1, 255]], [[0, 1], [0, 1]]])
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value})
    module.validation_step((nn.functional.one_hot(says, 2).permute(0, 3, 1, 2) * 4.0, labels), 0)
    # class 0: 2 of both, 1 + 1 of one alone; class 1: 3, 1 + 1
    assert logged["val_miou"].compute().item() == pytest.approx((2 / 4 + 3 / 5) / 2)
    right, wrong = (torch.tensor([v, 0.0]).log_softmax(0)[0] for v in (4.0, -4.0))
    assert logged["val_loss"].item() == pytest.approx(-(5 * right + 2 * wrong).item() / 7)
