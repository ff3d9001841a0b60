"""Images prepared by the manifest alone, against torchvision; folders, arrays and what is refused."""

import itertools
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hqp_lightning.board.data import labelled_batches, preprocess
from hqp_lightning.data import CIFAR10DataModule, DigitsDataModule, ImageFolderDataModule, ImagenetteDataModule
from hqp_lightning.errors import ExportError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _image(width, height):
    coarse = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(75, 50), (50, 75), (61, 61)])
@pytest.mark.parametrize(
    ("steps", "transforms"),
    [
        ({"resize": 32, "center_crop": 24}, [v2.Resize(32), v2.CenterCrop(24)]),
        ({"resize": [20, 30]}, [v2.Resize((20, 30))]),
        ({"resize": 96, "interpolation": "bicubic"}, [v2.Resize(96, v2.InterpolationMode.BICUBIC)]),
        ({"center_crop": [33, 40]}, [v2.CenterCrop((33, 40))]),
    ],
)
def test_the_steps_are_torchvisions(size, steps, transforms):
    image = _image(*size)
    expected = v2.Compose(
        [v2.PILToTensor(), *transforms, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    got = preprocess(image, {**steps, "mean": MEAN, "std": STD})
    assert got.dtype == np.float32
    # Levels of 255: Pillow and torch round the bytes differently here and there, once in each direction.
    difference = np.abs(got - expected(image).numpy()) * np.array(STD)[:, None, None] * 255
    assert difference.max() < (2.01 if "resize" in steps else 1e-4)
    assert difference.mean() < 0.2


def test_imagenette_is_prepared_as_in_training(imagenette_root):
    data = ImagenetteDataModule(imagenette_root, image_size=32, batch_size=50, decision_fraction=0.5)
    data.setup()
    expected = {tuple(y.tolist()): x for x, y in data.val_dataloader()}
    ((labels, images),) = expected.items()
    manifest = {"preprocessing": data.preprocessing, "classes": list(data.classes)}
    ((got, got_labels),) = labelled_batches(imagenette_root / "imagenette2-160" / "val", manifest, 64)
    assert len(got) == 50
    assert sorted(set(got_labels.tolist())) == list(range(10))
    for image, label in zip(images.numpy(), labels, strict=True):  # each of the decision half is among all of them
        distance = np.abs(got[got_labels == label] - image).max(axis=(1, 2, 3))
        assert distance.min() * min(STD) * 255 < 1.01


@pytest.mark.parametrize("crop_fraction", [0.875, 1.0])
def test_a_folder_of_images_is_prepared_as_in_training(crop_fraction, tmp_path):
    for part, name in itertools.product(("train", "val"), ("cat", "dog")):
        (tmp_path / part / name).mkdir(parents=True)
        for k, size in enumerate([(70, 50), (50, 71), (64, 64), (90, 61)]):
            _image(*size).rotate(30 * k).save(tmp_path / part / name / f"{k}.png")
    data = ImageFolderDataModule(tmp_path, image_size=32, batch_size=8, crop_fraction=crop_fraction)
    data.setup()
    ((images, labels),) = data.val_dataloader()
    manifest = {"preprocessing": data.preprocessing, "classes": list(data.classes)}
    ((got, got_labels),) = labelled_batches(tmp_path / "val", manifest, 8)
    for image, label in zip(images.numpy(), labels, strict=True):  # each of the decision half is among all of them
        distance = np.abs(got[got_labels == int(label)] - image).max(axis=(1, 2, 3))
        assert distance.min() * min(STD) * 255 < 2.01


def test_what_every_datamodule_says_is_understood(imagenette_root, tmp_path):
    photos = imagenette_root / "imagenette2-160"
    modules = [
        ImageFolderDataModule(photos, image_size=16),
        ImagenetteDataModule(imagenette_root, image_size=16),
        CIFAR10DataModule(tmp_path, image_size=16, download=True),  # when it is set up, which it is not
        DigitsDataModule(image_size=16),
    ]
    for data in modules:
        assert preprocess(_image(20, 20), data.preprocessing).shape == (3, 16, 16)


def test_folders_are_classes_by_name_or_in_order(tmp_path):
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        _image(8, 8).save(tmp_path / name / "1.png")
    steps = {"preprocessing": {"resize": 8}}

    def labels(classes):
        return [int(y) for _, ys in labelled_batches(tmp_path, {**steps, "classes": classes}, 1) for y in ys]

    assert labels(["dog", "cow", "cat"]) == [2, 0]  # read in alphabetical order: cat, dog
    assert labels(["tabby", "terrier"]) == [0, 1]
    assert labels(None) == [0, 1]
    with pytest.raises(ExportError, match="2 folders, the model 3 classes .*name the folders as the classes"):
        labels(["a", "b", "c"])
    # As many folders as classes, but one is called as a class: in alphabetical order it would get another's number.
    with pytest.raises(ExportError, match="no class is called cat: name the folders"):
        labels(["dog", "Cat"])
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "dog" / "._1.png").write_bytes(b"\0\5\x16\7")  # as a Mac leaves on foreign disks
    assert labels(["tabby", "terrier"]) == [0, 1]


def test_arrays_prepared_or_not(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "raw.npz", images=images, labels=np.arange(10))
    manifest = {"preprocessing": {"mean": MEAN, "std": STD}, "classes": None}
    batches = list(labelled_batches(tmp_path / "raw.npz", manifest, 4))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    expected = (images / 255.0 - MEAN) / STD
    np.testing.assert_allclose(
        np.concatenate([x for x, _ in batches]), expected.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5
    )
    np.savez(tmp_path / "ready.npz", images=expected.transpose(0, 3, 1, 2), labels=np.arange(10))
    ((got, labels),) = labelled_batches(tmp_path / "ready.npz", None, 5, limit=5)
    np.testing.assert_array_equal(labels, [0, 2, 4, 6, 8])
    np.testing.assert_allclose(got, expected.transpose(0, 3, 1, 2)[::2])


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 3, 8, 8), np.int64), [0, 1]),  # neither prepared nor pixels
        (np.zeros((2, 3, 8, 8), np.uint8), [0, 1]),  # pixels, but channels first
        (np.zeros((2, 3, 8, 8), np.float32), [[0, 1], [1, 0]]),  # one-hot
        (np.zeros((2, 3, 8, 8), np.float32), [0.1, 0.9]),
        (np.zeros((2, 3, 8, 8), np.float32), [0, 1, 2]),
        (np.uint8(3), [0]),
    ],
)
def test_arrays_that_are_not_images_and_labels_are_refused(images, labels, tmp_path):
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    with pytest.raises(ExportError, match=r"expected float32 \(n, channels, height, width\) or uint8"):
        list(labelled_batches(tmp_path / "a.npz", {"preprocessing": {}}, 1))


def test_colours_stand_last_where_the_manifest_says_so(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), np.uint8)
    np.savez(tmp_path / "raw.npz", images=raw, labels=np.arange(4))
    steps = {"mean": [0.5] * 3, "std": [0.25] * 3}
    entry = {"name": "x", "shape": [6, 8, 3], "dtype": "float32", "layout": "NHWC"}
    manifest = {"preprocessing": steps, "model": {"inputs": [entry]}}
    ((images, _),) = labelled_batches(tmp_path / "raw.npz", manifest, 4)
    np.testing.assert_allclose(images, (raw / 255 - 0.5) / 0.25, atol=1e-5)


def test_a_damaged_file_is_named(tmp_path):
    np.savez(tmp_path / "whole.npz", images=np.zeros((2, 3, 8, 8), np.float32), labels=[0, 1])
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    broken = whole[:300] + b"\xff" * 50 + whole[350:]  # the archive's directory is whole, the array is not
    contents = {
        "half": whole[: len(whole) // 2],
        "broken": broken,
        "empty": b"",
        "array": (tmp_path / "array.npz.npy").read_bytes(),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(ExportError, match=f"{name}.npz is no .npz with the arrays images and labels"):
            list(labelled_batches(tmp_path / f"{name}.npz", None, 1))
    folder = tmp_path / "pictures" / "cat"
    folder.mkdir(parents=True)
    _image(64, 64).save(folder / "1.png")
    picture = (folder / "1.png").read_bytes()
    for content in (picture[: len(picture) // 2], b"", b"<html>not found</html>"):
        (folder / "1.png").write_bytes(content)
        with pytest.raises(ExportError, match=r"cat/1.png cannot be read as a picture .*copy it again"):
            list(labelled_batches(folder.parent, {"preprocessing": {}}, 1))


@pytest.mark.parametrize("model", [{}, {"model": {"input_shape": [3, 32, 32]}}])
def test_a_picture_of_another_aspect_ratio_is_named(model, tmp_path):
    (tmp_path / "cat").mkdir()
    _image(40, 40).save(tmp_path / "cat" / "1.png")
    _image(50, 40).save(tmp_path / "cat" / "2.png")
    manifest = {"preprocessing": {"resize": 32}, "classes": ["cat"], **model}
    with pytest.raises(ExportError, match=r"cat/2.png is \(3, 32, 40\) when prepared .*, expected \(3, 32, 32\)"):
        list(labelled_batches(tmp_path, manifest, 2))
    manifest["preprocessing"]["crop"] = "square"
    ((images, _),) = labelled_batches(tmp_path, manifest, 2)
    assert images.shape == (2, 3, 32, 32)


def test_what_cannot_be_prepared_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    with pytest.raises(ExportError, match="no images in"):
        list(labelled_batches(tmp_path, None, 1))
    _image(8, 8).save(tmp_path / "cat" / "1.png")
    with pytest.raises(ExportError, match="manifest has no preprocessing"):
        list(labelled_batches(tmp_path, {"classes": ["cat"]}, 1))
    for steps in ({"resize": 8, "pad": 3}, {"crop": "random"}, {"central_square": 0.9}, {"interpolation": "lanczos"}):
        with pytest.raises(ExportError, match="is not understood: expected crop"):
            list(labelled_batches(tmp_path, {"preprocessing": steps}, 1))
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 3)), labels=np.zeros(2))
    with pytest.raises(ExportError, match=r"images float64 \(2, 3\)"):
        list(labelled_batches(tmp_path / "a.npz", None, 1))
    np.savez(tmp_path / "b.npz", x=np.zeros((2, 3)))
    with pytest.raises(ExportError, match="arrays images and labels"):
        list(labelled_batches(tmp_path / "b.npz", None, 1))
    with pytest.raises(ExportError, match=r"without the manifest.json .*--manifest"):
        list(labelled_batches(tmp_path, None, 1))
    for limit in (0, -1):
        with pytest.raises(ExportError, match="expected at least 1 image"):
            list(labelled_batches(tmp_path, {"preprocessing": {}}, 1, limit))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ExportError, match="sudo apt install python3-pil"):
        list(labelled_batches(tmp_path, {"preprocessing": {}}, 1))
