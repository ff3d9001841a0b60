import pytest
import torch
import torchvision
from torch import nn

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.models import build_network, load_weights_


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_is_torchvisions_network_and_loads_its_checkpoint(name, tmp_path):
    torch.manual_seed(1)
    reference = torchvision.models.get_model(name, num_classes=10).eval()
    torch.save(reference.state_dict(), tmp_path / "net.pth")
    net = build_network(name, 10, checkpoint=tmp_path / "net.pth").eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(net(x), reference(x))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0"])
def test_pretrained_weights_stay_but_for_the_head(name, monkeypatch):
    # Stands for the download: "pretrained" weights of 1,000 classes, made here.
    torch.manual_seed(2)
    pretrained = torchvision.models.get_model(name)
    torchvision_get_model = torchvision.models.get_model
    asked = []

    def get_model(which, weights=None, **kwargs):
        asked.append(weights)
        net = torchvision_get_model(which, **kwargs)
        net.load_state_dict(pretrained.state_dict())
        return net

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    net = build_network(name, 10, weights="DEFAULT")
    assert asked == ["DEFAULT"]
    assert net.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 10)
    before, after = pretrained.state_dict(), net.state_dict()
    changed = [k for k in before if before[k].shape != after[k].shape or not torch.equal(before[k], after[k])]
    assert len(changed) == 2
    assert {k.rsplit(".", 1)[1] for k in changed} == {"weight", "bias"}


def test_bn_momentum_is_set_everywhere():
    net = build_network("mobilenet_v3_small", 10, bn_momentum=0.1)
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="no classifier 'resnet19'; it has .*resnet18"):
        build_network("resnet19", 10)
    with pytest.raises(ConfigurationError, match="no weights 'NOPE' of resnet18"):
        build_network("resnet18", 10, weights="NOPE")
    with pytest.raises(ConfigurationError, match="num_classes must be at least 1, got 0"):
        build_network("resnet18", 0)


def _linear():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_a_checkpoint_that_does_not_fit_changes_nothing_and_names_the_keys(tmp_path):
    net = _linear()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    other = {k: v for k, v in _linear().state_dict().items() if k != "1.bias"}
    other |= {"0.weight": torch.zeros(5, 4), "head.weight": torch.zeros(1)}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(ConfigurationError) as caught:
        load_weights_(net, tmp_path / "other.pth")
    message = str(caught.value)
    assert "1 missing (1.bias)" in message
    assert "1 unexpected (head.weight)" in message
    assert "0.weight (5, 4) instead of (3, 4)" in message
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_what_is_no_state_dict_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no checkpoint at"):
        load_weights_(_linear(), tmp_path / "none.pth")
    torch.save({"state_dict": _linear().state_dict(), "epoch": 3}, tmp_path / "lightning.ckpt")
    with pytest.raises(ConfigurationError, match="a dict with the keys state_dict, epoch"):
        load_weights_(_linear(), tmp_path / "lightning.ckpt")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ConfigurationError, match="does not hold a plain state dict"):
        load_weights_(_linear(), tmp_path / "text.pth")
    torch.save(_linear(), tmp_path / "pickled.pth")  # a whole module: reading it would run code
    with pytest.raises(ConfigurationError, match="does not hold a plain state dict"):
        load_weights_(_linear(), tmp_path / "pickled.pth")


def test_a_failed_download_names_the_file_and_where_to_put_it(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(ConfigurationError, match=r"no route to host\. Put https://\S+/resnet18-\w+\.pth into "):
        build_network("resnet18", 10, weights="DEFAULT")


def test_timms_network_is_timms():
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    reference = timm.create_model("resnet10t", num_classes=7).eval()
    torch.manual_seed(3)
    net = build_network("timm/resnet10t", 7).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(net(x), reference(x))
    with pytest.raises(ConfigurationError, match="timm has no model 'resnet10tt'; did you mean resnet10t"):
        build_network("timm/resnet10tt", 7)


def test_timm_weights_that_do_not_come_are_explained(monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def offline(name, pretrained, **kwargs):
        if pretrained:
            raise OSError("no route to host")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigurationError, match=r"no route to host\. timm knows resnet10t\.\S+.*model\.checkpoint="):
        build_network("timm/resnet10t", 7, weights="DEFAULT")
