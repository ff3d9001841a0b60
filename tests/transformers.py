"""Vision transformers as published, in small: widths and depths of a test, random weights of ordinary size."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.swin_transformer import SwinTransformer


def _timm(name, **options):
    return pytest.importorskip("timm").create_model(name, num_classes=16, **options)


def _hybrid():
    """Convolutions with BatchNorm in place of patches, as timm's ``vit_base_mci_224`` has them."""
    pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer as Timm
    from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed

    stem = partial(HybridEmbed, backbone=ConvStem(channels=(32, 32, 64)), proj=False)
    return Timm(32, patch_size=1, embed_layer=stem, num_classes=16, embed_dim=64, depth=2, num_heads=2)


_VIT = {"patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 2}
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "torchvision_vit": lambda: VisionTransformer(32, 8, 2, 2, 64, 128, num_classes=16),
    "torchvision_swin": lambda: SwinTransformer([4, 4], 64, [2, 1], [2, 4], [4, 4], num_classes=16),
    "timm_vit": lambda: _timm("vit_tiny_patch16_224", img_size=32, **_VIT),
    "timm_deit": lambda: _timm("deit_tiny_distilled_patch16_224", img_size=32, **_VIT),
    "timm_swin": lambda: _timm(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=64, depths=(2, 1), num_heads=(2, 4)
    ),
    "timm_hybrid": lambda: _hybrid(),
}
WIDTHS = {  # of the MLPs: fc1's name to its width
    "torchvision_vit": {f"encoder.layers.encoder_layer_{i}.mlp.0": 128 for i in range(2)},
    "torchvision_swin": {"features.1.0.mlp.0": 256, "features.1.1.mlp.0": 256, "features.3.0.mlp.0": 512},
    "timm_vit": {f"blocks.{i}.mlp.fc1": 256 for i in range(2)},
    "timm_deit": {f"blocks.{i}.mlp.fc1": 256 for i in range(2)},
    "timm_swin": {
        "layers.0.blocks.0.mlp.fc1": 256,
        "layers.0.blocks.1.mlp.fc1": 256,
        "layers.1.blocks.0.mlp.fc1": 512,
    },
    "timm_hybrid": {f"blocks.{i}.mlp.fc1": 256 for i in range(2)},
}
TOKENS = {"timm_vit": 17, "timm_deit": 18, "torchvision_vit": 17, "timm_hybrid": 17}
"""Patches and class tokens; the others' differ from stage to stage."""


def build(name: str) -> nn.Module:
    """In eval mode; what starts as zero or nearly so (biases, class tokens, heads) has values, too."""
    torch.manual_seed(0)
    network = BUILDERS[name]()
    with torch.no_grad():
        for m in network.modules():
            if isinstance(m, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(m.weight, 0, m.weight[0].numel() ** -0.5)
        for p in network.parameters():
            if float(p.abs().max()) < 1e-3:
                p.normal_(0, 0.3)
    return network.eval()
