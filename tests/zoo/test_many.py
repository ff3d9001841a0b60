"""Many published networks: what is pruned of each is exact by an independent mask; docs/supported.md has the counts."""

import copy
import re
from pathlib import Path

import pytest
import torch
from networks import gates_at_inputs
from torch import nn
from torchvision import models

from hqp_lightning.surgery import Shadow, apply_cut_

DOCS = Path(__file__).parents[2] / "docs" / "supported.md"
SEGMENTATION = ["fcn_resnet50", "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"]
TORCHVISION = ["squeezenet1_0", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "mnasnet0_5", *SEGMENTATION]
_TIMM = """ghostnet_050 repghostnet_050 vit_tiny_patch16_224 deit_tiny_patch16_224.p8 vit_tiny_patch16_224.p8
hardcorenas_a resnest14d seresnet18 resnet10t resnet14t res2next50 dla34 dla46_c dpn48b ese_vovnet19b_slim fbnetc_100
spnasnet_100 tinynet_e lcnet_050 semnasnet_050 mobilenetv2_050 mobilenetv1_100 rexnet_100 regnetz_005 hrnet_w18_small
legacy_seresnet18 starnet_s1 edgenext_xx_small fasternet_t0 inception_next_atto poolformer_s12 gernet_s ecaresnet26t
skresnet18 mixer_s32_224"""
TIMM = _TIMM.split()


def build(name):
    torch.manual_seed(0)
    if name in SEGMENTATION:
        network = getattr(models.segmentation, name)(weights=None, weights_backbone=None, num_classes=5)
    elif name in TORCHVISION:
        network = getattr(models, name)(num_classes=10)
    else:
        timm, (kind, _, patch) = pytest.importorskip("timm"), name.partition(".p")
        options = {"img_size": 32} if "vit" in kind or "deit" in kind or "mixer" in kind else {}
        options |= {"patch_size": int(patch), "depth": 3} if patch else {}
        network = timm.create_model(kind, num_classes=10, **options)
    with torch.no_grad():
        for m in network.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
        for p in network.parameters():  # what is multiplied by nearly zero would hide what is done to it
            if p.dim() and float(p.abs().max()) < 1e-3 and p.numel() > 1:
                p.uniform_(0.5, 1.5)
    return network.eval()


def documented():
    rows = re.findall(r"^\| `([\w.]+)` \| (\d+) \| (\d+) \| (\d+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: tuple(map(int, counts)) for name, *counts in rows}


def outputs(network, x):
    with torch.no_grad():
        out = network(x)
    return torch.cat([o.flatten() for o in (out.values() if isinstance(out, dict) else [out])])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_what_is_pruned_is_exact_and_the_rest_is_told(name):
    network, x = build(name), torch.randn(2, 3, 32, 32)
    shadow = Shadow(network, [x])
    groups, status = shadow.groups(), [n.status for n in shadow.notes]
    assert documented()[name] == (len(groups), status.count("approximate"), status.count("left out"))
    assert all(n.reason for n in shadow.notes)
    if "vit" in name or "deit" in name:
        assert sum(g.name.endswith("mlp.fc1") for g in groups) == len(network.blocks)
    exact = [g for g in groups if g.name not in {n.group for n in shadow.notes}]
    masks, removed = {g.name: torch.ones(g.channels, dtype=torch.float64) for g in exact}, {}
    generator = torch.Generator().manual_seed(1)
    for g in exact:
        gates = torch.randperm(g.gates, generator=generator)[: g.gates // 4].tolist()
        removed[g.name] = [k + b * g.gates for k in gates for b in range(g.blocks)]
        masks[g.name][removed[g.name]] = 0.0
    cut = shadow.cut(removed)
    masked, x = copy.deepcopy(network).double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    dense = outputs(masked, x)
    apply_cut_(network, cut)
    gates_at_inputs(masked, masks, exact)
    expected = outputs(masked, x)
    largest = float(expected.abs().max())
    torch.testing.assert_close(outputs(network.double(), x), expected, rtol=0.0, atol=1e-9 * largest)
    assert not removed or float((expected - dense).abs().max()) > 1e-6 * largest  # the masks matter
    for g in exact:
        layer, before = network.get_submodule(g.name), g.channels
        width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        assert before - width == len(removed[g.name])
