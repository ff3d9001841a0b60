import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder, ImageNet
from torchvision.transforms import v2

from hqp_lightning.data import ImageFolderDataModule, ImageNetDataModule, count_classes
from hqp_lightning.errors import ConfigurationError


def write_images(folder, classes, number, side=64, seed=0, suffix="png"):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(0, 256, (side, side + 10 * (i % 2), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{i}.{suffix}")


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return data


def files(data):
    return {name: set(images.files) for name, (images, _) in data._sets.items()}


def test_train_and_val_folders_with_validation_divided(tmp_path):
    write_images(tmp_path / "train", "ab", 6)
    write_images(tmp_path / "val", "ab", 4, seed=1)
    data = ready(ImageFolderDataModule(tmp_path, image_size=32, batch_size=4))
    parts = files(data)
    assert [len(parts[n]) for n in ("train", "val", "test")] == [12, 4, 4]
    assert all("/train/" in f for f in parts["train"])
    assert not parts["val"] & parts["test"]
    assert data.classes == ("a", "b")
    assert count_classes(tmp_path) == 2
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    assert labels.dtype == torch.long


def test_class_folders_alone_are_divided_60_20_20(tmp_path):
    write_images(tmp_path, "abc", 10)
    data = ready(ImageFolderDataModule(tmp_path, image_size=16))
    parts = files(data)
    assert [len(parts[n]) for n in ("train", "val", "test")] == [18, 6, 6]
    assert len(parts["train"] | parts["val"] | parts["test"]) == 30
    for _, labels in data._sets.values():
        assert len(set(torch.bincount(labels, minlength=3).tolist())) == 1
    assert count_classes(tmp_path) == 3


@pytest.mark.parametrize("cache", [True, False])
def test_preprocessing_equals_torchvisions_evaluation_transform(tmp_path, cache):
    # 128 px squares: torchvision resizes them to 64 and cuts 56; cutting 112 and halving samples the same points.
    write_images(tmp_path / "train", "ab", 2)
    write_images(tmp_path / "val", "ab", 3, side=128)
    data = ready(ImageFolderDataModule(tmp_path, image_size=56, cache=cache, batch_size=9))
    mean, std = data.preprocessing["mean"], data.preprocessing["std"]
    to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    reference = v2.Compose([v2.PILToTensor(), v2.Resize(64, antialias=True), v2.CenterCrop(56), *to_float])
    source = ImageFolder(str(tmp_path / "val"), transform=reference)
    square = [source[i][0] for i, (path, _) in enumerate(source.samples) if not path.endswith("_1.png")]
    loaders = data.val_dataloader(), data.test_dataloader()
    images = torch.cat([x for loader in loaders for x, _ in loader])
    for expected in square:
        inner = (images - expected).abs()[..., 1:-1, 1:-1].amax((1, 2, 3))  # at the edge the filters see other pixels
        assert inner.min() < 1e-5
        assert inner.sort().values[1] > 0.5


def test_imagenet_of_torchvisions_layout(tmp_path):
    wnids = [f"n0000000{i}" for i in range(3)]
    for split, number in (("train", 4), ("val", 6)):
        write_images(tmp_path / split, wnids, number, suffix="JPEG")
    names = {w: (f"name of {w}", "synonym") for w in wnids}
    torch.save((names, [w for w in wnids for _ in range(6)]), tmp_path / "meta.bin")
    data = ready(ImageNetDataModule(tmp_path, image_size=32, batch_size=4))
    reference = ImageNet(str(tmp_path), "val")
    assert data.classes == tuple(c[0] for c in reference.classes) == tuple(f"name of {w}" for w in wnids)
    labels = {path: label for path, label in reference.samples}
    images, found = data._sets["val"]
    assert [labels[f] for f in images.files] == found.tolist()
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)


def test_imagenet_says_which_archives_are_missing(tmp_path):
    with pytest.raises(ConfigurationError, match=r"devkit_t12.*ILSVRC2012_img_train\.tar .*image-net\.org"):
        ready(ImageNetDataModule(tmp_path))
    with pytest.raises(ConfigurationError, match="no folder .*nowhere"):
        ImageNetDataModule(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"no image classes in .*Expected one folder for each class: ROOT/train/CLASS"),
        (lambda p: write_images(p / "train", "ab", 2), r"holds train, but not val; expected both"),
        (lambda p: (p / "train" / "a").mkdir(parents=True) or (p / "val").mkdir(), r"no image classes in .*train"),
        (
            lambda p: (write_images(p / "train", "ab", 4), write_images(p / "val", "ac", 4)),
            r"same class folders; they differ in \['b', 'c'\]",
        ),
    ],
)
def test_a_folder_of_another_layout_is_told_what_was_expected(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        ready(ImageFolderDataModule(tmp_path))


def test_a_file_that_is_no_image_is_named(tmp_path):
    write_images(tmp_path, "ab", 10)
    (tmp_path / "a" / "a_3.png").write_text("hello")
    with pytest.raises(ConfigurationError, match=r"a_3\.png can't be read as an image"):
        ready(ImageFolderDataModule(tmp_path, image_size=16, cache=True))


@pytest.mark.parametrize("kwargs", [{"image_size": 0}, {"crop_fraction": 0.0}, {"min_crop": 1.5}])
def test_refuses_numbers_out_of_range(tmp_path, kwargs):
    (name,) = kwargs
    with pytest.raises(ConfigurationError, match=f"{name}={kwargs[name]}"):
        ImageFolderDataModule(tmp_path, **kwargs)
