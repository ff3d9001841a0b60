import collections

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from hqp_lightning.data import DigitsDataModule
from hqp_lightning.errors import ConfigurationError


def _all(loader):
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _module(**kwargs):
    data = DigitsDataModule(**kwargs)
    data.prepare_data()
    data.setup("fit")
    return data


def test_split_is_60_20_20_stratified_and_disjoint():
    data = _module()
    parts = [data._sets[name] for name in ("train", "val", "test")]
    assert [len(y) for _, y in parts] == [1078, 359, 360]
    for _, labels in parts:
        shares = torch.bincount(labels, minlength=10) / len(labels)
        whole = torch.bincount(torch.as_tensor(load_digits().target)) / 1797
        assert (shares - whole).abs().max() < 0.004
    # Every image of the source is in exactly one part (two digits of the source happen to be equal).
    key = collections.Counter(x.numpy().tobytes() for images, _ in parts for x in images)
    assert sum(key.values()) == 1797
    assert len(key) == len({x.tobytes() for x in load_digits().images})


def test_preprocessing_equals_pillows_bilinear_upsampling():
    data = _module(max_shift=0)
    images, labels = _all(data.val_dataloader())
    assert images.shape == (359, 3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 2])
    p = data.preprocessing
    assert p["resize"] == 32
    source = load_digits()
    for image, label in zip(images[:20], labels[:20], strict=True):
        unit = image[0] * p["std"][0] + p["mean"][0]
        reference = [
            np.asarray(Image.fromarray((d / 16).astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR))
            for d in source.images[source.target == int(label)]
        ]
        assert min(np.abs(unit.numpy() - r).max() for r in reference) < 1e-6


def test_images_are_normalised():
    images = torch.cat([x for x, _ in _module()._sets.values()])
    assert abs(images.mean().item()) < 1e-3
    assert abs(images.std().item() - 1) < 1e-3


def test_shift_moves_each_image_on_its_own_and_repeats_with_the_seed():
    def first(**kwargs):
        data = _module(batch_size=128, **kwargs)
        return next(iter(data.train_dataloader()))

    (plain, labels), (shifted, same) = first(max_shift=0), first(max_shift=2)
    assert torch.equal(labels, same)
    padded = torch.nn.functional.pad(plain, (2, 2, 2, 2), mode="replicate")
    offsets = []
    for image, moved in zip(padded, shifted, strict=True):
        hits = [(r, c) for r in range(5) for c in range(5) if torch.equal(image[:, r : r + 32, c : c + 32], moved)]
        assert hits
        offsets.append(hits[0])
    assert len(set(offsets)) > 15
    assert torch.equal(shifted, first(max_shift=2)[0])


def test_loaders_and_classes():
    data = _module(batch_size=16)
    assert data.classes == tuple("0123456789")
    assert len(_all(data.test_dataloader())[0]) == 360


@pytest.mark.parametrize("kwargs", [{"image_size": 0}, {"batch_size": 0}, {"max_shift": -1}])
def test_refuses_numbers_out_of_range(kwargs):
    (name,) = kwargs
    with pytest.raises(ConfigurationError, match=f"{name}={kwargs[name]}"):
        DigitsDataModule(**kwargs)
