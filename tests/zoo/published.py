"""The published classifiers of the zoo, with random weights and BatchNorm statistics that are not the identity."""

import pytest
import torch
from torch import nn
from torchvision import models


def vgg16_bn():
    network = models.vgg16_bn(num_classes=10)
    # 128 wide instead of 4096: half a gigabyte of random weights would test nothing more. And at 32 px there is one
    # position, which ONNX can't pool to 7x7; without the last pooling it is 2x2: several inputs per channel.
    network.features[-1], network.avgpool = nn.Identity(), nn.AdaptiveAvgPool2d(2)
    network.classifier[0], network.classifier[3] = nn.Linear(512 * 4, 128), nn.Linear(128, 128)
    network.classifier[6] = nn.Linear(128, 10)
    return network


TORCHVISION = {
    "resnet18": models.resnet18,
    "resnet50": models.resnet50,
    "mobilenet_v2": models.mobilenet_v2,
    "mobilenet_v3_small": models.mobilenet_v3_small,
    "mobilenet_v3_large": models.mobilenet_v3_large,
    "efficientnet_b0": models.efficientnet_b0,
    "regnet_y_400mf": models.regnet_y_400mf,
    "regnet_x_400mf": models.regnet_x_400mf,
    "convnext_tiny": models.convnext_tiny,
    "densenet121": models.densenet121,
    "googlenet": lambda num_classes: models.googlenet(num_classes=num_classes, aux_logits=False, init_weights=False),
    "vgg16_bn": lambda num_classes: vgg16_bn(),
}
TIMM = ["resnet18", "mobilenetv3_small_100", "efficientnet_lite0", "repvgg_a0"]


def build(name):
    torch.manual_seed(0)
    if name in TORCHVISION:
        network = TORCHVISION[name](num_classes=10)
    else:
        network = pytest.importorskip("timm").create_model(name.removeprefix("timm_"), num_classes=10)
    with torch.no_grad():
        for m in network.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
    return network


NAMES = (*TORCHVISION, *(f"timm_{n}" for n in TIMM))
