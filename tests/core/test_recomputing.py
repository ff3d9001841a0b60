"""Gradient checkpoints change nothing: the same network without them is the reference."""

import onnx
import torch
from classifier import small_net
from networks import draw_norms_
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointFunction, checkpoint, checkpoint_sequential

from hqp_lightning.core import fisher, gradients, recomputing
from hqp_lightning.export import export_onnx
from hqp_lightning.surgery import Shadow


class Recomputed(nn.Module):
    def __init__(self, network, reentrant):
        super().__init__()
        self.network, self.reentrant = network, reentrant

    def forward(self, x):
        layers = self.network
        x = checkpoint(layers[:4], x, use_reentrant=self.reentrant)
        x = checkpoint_sequential(layers[4:9], 2, x, use_reentrant=self.reentrant)
        return layers[9:](x)


def both():
    torch.manual_seed(0)
    network = small_net()
    draw_norms_(network)
    plain = nn.ModuleDict({"network": network}).eval()
    plain.forward = network.forward
    return plain, Recomputed(network, True).eval(), Recomputed(network, False).eval()


def test_scores_and_groups_are_those_of_the_network_without_checkpoints():
    x, y = torch.randn(6, 1, 8, 8), torch.arange(6)
    found = []
    for module in both():
        groups = Shadow(module, (x[:2],)).groups()

        def loss(module=module):
            return F.cross_entropy(module(x), y, reduction="none")

        state, names = fisher.gate_fisher(module, groups, loss), [n for n, _ in module.named_parameters()]
        sums = gradients.gradient_sums(module, loss).sums
        found.append(([(g.name, g.channels) for g in groups], state.sums, [sums[n] for n in names]))
    for groups, scores, gradient in found[1:]:
        assert groups == found[0][0] == [("network.0", 32), ("network.3", 64), ("network.7", 64)]
        torch.testing.assert_close(scores, found[0][1])
        torch.testing.assert_close(gradient, found[0][2])


def test_the_file_is_that_of_the_network_without_checkpoints(tmp_path):
    x, files = torch.randn(2, 1, 8, 8), []
    for i, module in enumerate(both()):
        export_onnx(module, x, tmp_path / f"{i}.onnx")
        files.append([n.op_type for n in onnx.load(tmp_path / f"{i}.onnx").graph.node])
    assert files[0] == files[1] == files[2]


def test_training_has_its_own_checkpoints_again():
    with recomputing.without_reentrance():
        assert torch.utils.checkpoint.CheckpointFunction is not CheckpointFunction
    assert torch.utils.checkpoint.CheckpointFunction is CheckpointFunction
