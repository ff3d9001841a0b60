import copy
import io

import pytest
import torch
from networks import BUILDERS, build
from surgery_samples import EXAMPLE, plan, pruned_copy
from torch import nn
from torchvision import models

from hqp_lightning.errors import SurgeryError
from hqp_lightning.surgery import Structure, apply_structure_, record


def through_a_file(plain):
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_fresh_network_takes_structure_and_weights_from_a_file(name):
    pruned = pruned_copy(build(name))
    saved = through_a_file({"structure": record(pruned).to_plain(), "state": pruned.state_dict()})
    fresh = BUILDERS[name]().eval()
    apply_structure_(fresh, Structure.from_plain(saved["structure"]))
    fresh.load_state_dict(saved["state"])
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(fresh(x), pruned(x))
    assert record(fresh) == record(pruned)


def test_the_cut_announces_the_structure_that_results():
    network = build("mobilenet_v3_small")
    cut = plan(network)[2]
    pruned = pruned_copy(network)
    assert record(pruned) == cut.structure
    assert Structure.from_plain(cut.structure.to_plain()) == cut.structure


def test_growing_back_keeps_identity_and_what_fits():
    dense = build("resnet18")
    pruned = pruned_copy(dense)
    held = dict(pruned.named_parameters())
    values = {n: p.detach().clone() for n, p in held.items()}
    apply_structure_(pruned, record(dense))
    for name, parameter in pruned.named_parameters():
        assert parameter is held[name]
        assert parameter.shape == dense.get_parameter(name).shape
        corner = tuple(slice(0, s) for s in values[name].shape)
        assert torch.equal(parameter[corner], values[name])
        assert parameter.detach().abs().sum() == pytest.approx(float(values[name].abs().sum()), rel=1e-5)
    pruned.load_state_dict(dense.state_dict())
    assert torch.equal(pruned(EXAMPLE), dense(EXAMPLE))


def test_memory_format_and_dtype_stay():
    dense = build("resnet18")
    structure = record(pruned_copy(dense))
    dense = dense.to(memory_format=torch.channels_last).half()
    apply_structure_(dense, structure)
    weight = dense.layer1[0].conv1.weight
    assert weight.shape == structure.shapes["layer1.0.conv1.weight"]
    assert weight.dtype == torch.half
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def other_kernel():
    network = build("vgg")
    network[0] = nn.Conv2d(3, 12, 5, padding=2)
    return network


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: models.resnet34(num_classes=10), "only in the model"),
        (lambda: build("regnet"), "only in the record"),
        (other_kernel, "another rank or kernel"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), "only in the record"),
    ],
)
def test_another_architecture_is_refused_and_left_as_it_was(other, said):
    network = other()
    before, structure = copy.deepcopy(network.state_dict()), record(network)
    source = "vgg" if other is other_kernel else "resnet18"
    with pytest.raises(SurgeryError, match=said):
        apply_structure_(network, record(pruned_copy(build(source))))
    assert record(network) == structure
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_layers_without_tensors_must_exist_too():
    class Shuffle(nn.Module):
        def __init__(self):
            super().__init__()
            self.groups = 2

    network = nn.Sequential(nn.Linear(3, 4))
    structure = record(nn.Sequential(nn.Linear(3, 2), Shuffle()))
    with pytest.raises(SurgeryError, match=r"1 layers only in the record \['1'\]"):
        apply_structure_(network, structure)
    assert network[0].weight.shape == (4, 3)
