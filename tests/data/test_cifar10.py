import pytest
import torch
from torchvision.datasets import CIFAR10

from hqp_lightning.data import CIFAR10DataModule
from hqp_lightning.errors import ConfigurationError


def ready(root, **kwargs):
    data = CIFAR10DataModule(root, batch_size=20, **kwargs)
    data.prepare_data()
    data.setup("fit")
    return data


def test_images_are_torchvisions_normalised_and_divided(cifar_root):
    data = ready(cifar_root)
    reference = CIFAR10(str(cifar_root), train=False)
    assert len(data.classes) == 10
    mean, std = (torch.tensor(data.preprocessing[k]).view(3, 1, 1) for k in ("mean", "std"))
    found = []
    for loader in (data.val_dataloader(), data.test_dataloader()):
        ((images, labels),) = loader
        assert images.shape == (20, 3, 32, 32)
        assert torch.bincount(labels).tolist() == [2] * 10
        found += [((x * std + mean) * 255).round().byte().permute(1, 2, 0).numpy().tobytes() for x in images]
    assert sorted(found) == sorted(image.tobytes() for image in reference.data)


def test_training_images_are_shifted_and_half_of_them_flipped(cifar_root):
    data = ready(cifar_root, max_shift=0)
    plain = torch.from_numpy(CIFAR10(str(cifar_root)).data).permute(0, 3, 1, 2)
    known = {data._prepare(x[None], None).numpy().tobytes() for x in plain}
    mirrored = {data._prepare(x[None].flip(-1), None).numpy().tobytes() for x in plain}
    images = [x[None].numpy().tobytes() for batch, _ in data.train_dataloader() for x in batch]
    assert len(images) == 100
    assert all(x in known or x in mirrored for x in images)
    assert 30 < sum(x in mirrored for x in images) < 70
    shifted = [x[None].numpy().tobytes() for x in next(iter(ready(cifar_root).train_dataloader()))[0]]
    assert sum(x in known or x in mirrored for x in shifted) < 5


def test_enlarges(cifar_root):
    data = ready(cifar_root, image_size=64)
    assert next(iter(data.train_dataloader()))[0].shape == (20, 3, 64, 64)
    assert data.preprocessing["resize"] == 64


def test_missing_files_are_said_with_the_manual_step(tmp_path):
    with pytest.raises(ConfigurationError, match=r"Unpack https://.*cifar-10-python\.tar\.gz .*data\.download=true"):
        ready(tmp_path)


def test_a_failed_download_is_said_with_the_manual_step(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", fail)
    with pytest.raises(ConfigurationError, match=r"no route to host\. Unpack https://"):
        ready(tmp_path, download=True)


@pytest.mark.parametrize("kwargs", [{"image_size": 0}, {"max_shift": -1}, {"decision_fraction": 0.0}])
def test_refuses_numbers_out_of_range(tmp_path, kwargs):
    (name,) = kwargs
    with pytest.raises(ConfigurationError, match=f"{name}={kwargs[name]}"):
        CIFAR10DataModule(tmp_path, **kwargs)
