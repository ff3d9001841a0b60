"""Networks of every kind of coupling, small enough for tests, with BatchNorm statistics that are not the identity."""

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck, ResNet


def _vgg():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(4),
        nn.Conv2d(12, 16, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(144, 32),  # nine inputs per channel
        nn.ReLU(),
        nn.Linear(32, 10),
    )


class TwoHeads(nn.Module):
    """A 1x1 convolution and a linear head, returned in a dict."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.masks = nn.Conv2d(24, 4, 1)
        self.classes = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.deep(self.body(x)).relu()
        return {"masks": self.masks(x), "classes": self.classes(x.mean((2, 3)))}


BUILDERS = {
    "resnet18": lambda: models.resnet18(num_classes=10),
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(num_classes=10),
    "resnext": lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, groups=4, width_per_group=4),
    "regnet": lambda: RegNet(
        BlockParams([1, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], se_ratio=1.0), num_classes=10, stem_width=8
    ),
    "densenet": lambda: models.DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=10),
    "vgg": _vgg,
    "convnext": lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)], num_classes=10),
}


def quick(name: str, num_classes: int, weights: None = None, bn_momentum: float | None = None) -> nn.Module:
    """In the place of a recipe's network, ``model.net._target_=networks.quick``, where a test is of the run alone."""
    widths, layers = (3, 16, 32, 64), []
    for i, width in enumerate(widths[1:]):
        layers += [nn.Conv2d(widths[i], width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


@torch.no_grad()
def draw_norms_(network: nn.Module) -> None:
    """Statistics and scales of BatchNorm that are not the identity."""
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 1.5)
            m.weight.uniform_(0.5, 1.5)
            m.bias.normal_(0, 0.3)


def build(name: str) -> nn.Module:
    """The network in eval mode, random but for the seed."""
    torch.manual_seed(0)
    network = TwoHeads() if name == "two_heads" else BUILDERS[name]()
    draw_norms_(network)
    with torch.no_grad():
        for n, p in network.named_parameters():
            if n.endswith("layer_scale"):
                p.uniform_(0.5, 1.5)
    return network.eval()


def gates_at_inputs(network: nn.Module, gates: dict, groups) -> list:
    """Multiply every consumer's input channels by its group's gates; returns the hooks.

    Written without the package's Fisher: ``gates[group name]`` has one entry per channel of the root.
    """

    def multiply(group, consumer):
        def hook(layer, args):
            x = args[0]
            channel_dim = x.dim() - 1 if isinstance(layer, nn.Linear) else 1
            mask = torch.ones(x.shape[channel_dim], dtype=x.dtype)
            mask = mask.index_put((torch.tensor(consumer.inputs),), gates[group.name][list(consumer.channels)])
            return (x * mask.view([-1 if d == channel_dim else 1 for d in range(x.dim())]), *args[1:])

        return hook

    return [
        network.get_submodule(c.module).register_forward_pre_hook(multiply(g, c)) for g in groups for c in g.consumers
    ]
