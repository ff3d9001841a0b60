import collections
from pathlib import Path

import pytest
import torch
from torchvision.datasets import ImageFolder, Imagenette
from torchvision.transforms import v2

from hqp_lightning.data import ImagenetteDataModule
from hqp_lightning.data.crops import random_resized_crops
from hqp_lightning.errors import ConfigurationError

SHARED = Path(__file__).parents[2] / ".." / "shared"


def _module(root, **kwargs):
    data = ImagenetteDataModule(root, **{"batch_size": 8, **kwargs})
    data.prepare_data()
    data.setup("fit")
    return data


def _all(loader):
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize("cache", [True, False])
def test_preprocessing_equals_torchvisions_transforms(imagenette_root, cache):
    data = _module(imagenette_root, cache=cache, image_size=128)
    p = data.preprocessing
    reference = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(128, antialias=True),
            v2.CenterCrop(128),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(p["mean"], p["std"]),
        ]
    )
    assert p == {"crop": "square", "resize": 128, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    source = ImageFolder(str(imagenette_root / "imagenette2-160" / "val"), transform=reference)
    # The square ones; in a wider picture the order of cutting and resizing decides about half a pixel.
    square = [i for i, (path, _) in enumerate(source.samples) if not path.endswith("_4.JPEG")]
    expected = {image.numpy().round(4).tobytes(): image for image in (source[i][0] for i in square)}
    images = torch.cat([_all(data.val_dataloader())[0], _all(data.test_dataloader())[0]])
    assert images.shape == (50, 3, 128, 128)
    found = [expected[key] for key in (x.numpy().round(4).tobytes() for x in images) if key in expected]
    assert len(found) == len(square) == 40
    kept = torch.stack([x for x in images if x.numpy().round(4).tobytes() in expected])
    torch.testing.assert_close(kept, torch.stack(found), rtol=0, atol=1e-6)


def test_validation_images_are_divided_stratified_and_disjoint(imagenette_root):
    def parts(**kwargs):
        data = _module(imagenette_root, image_size=16, cache=False, **kwargs)
        return [set(data._sets[name][0].files) for name in ("val", "test")], data

    (decision, holdout), data = parts(decision_fraction=0.6)
    assert len(decision) == 30
    assert len(holdout) == 20
    assert not decision & holdout
    assert set(collections.Counter(Path(f).parent.name for f in decision).values()) == {3}
    assert all(Path(f).parents[1].name == "val" for f in decision | holdout)
    assert all(Path(f).parents[1].name == "train" for f in data._sets["train"][0].files)
    assert parts(decision_fraction=0.6)[0] == [decision, holdout]
    assert parts(decision_fraction=0.6, seed=1)[0] != [decision, holdout]


def test_labels_and_classes_are_torchvisions(imagenette_root):
    data = _module(imagenette_root, image_size=16, cache=False)
    reference = Imagenette(imagenette_root, "val", size="160px")
    assert data.classes == tuple(names[0] for names in reference.classes)
    images, labels = data._sets["val"]
    assert [reference.wnids[i] for i in labels] == [Path(f).parent.name for f in images.files]


def test_training_batches_repeat_with_the_seed(imagenette_root):
    def epoch(seed):
        return _all(_module(imagenette_root, image_size=32, seed=seed).train_dataloader())

    (images, labels), (same, same_labels), (other, _) = epoch(0), epoch(0), epoch(1)
    assert images.shape == (48, 3, 32, 32)  # the last two of fifty make no full batch
    assert torch.equal(images, same)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(images, other)


def test_a_worker_process_serves_the_same_validation_images(imagenette_root):
    alone = _all(_module(imagenette_root, image_size=16).val_dataloader())
    loader = _module(imagenette_root, image_size=16, num_workers=1).val_dataloader()
    assert all(torch.equal(a, b) for a, b in zip(_all(loader), alone, strict=True))


def test_random_crops_have_the_asked_area_and_ratio_and_flip_half():
    # Two ramps tell from the crop's mean gradient how many source pixels a result pixel spans.
    rows = torch.arange(160).view(1, 160, 1).expand(1, 160, 160)
    image = torch.cat([rows, rows.transpose(1, 2), rows])[None].to(torch.uint8)
    out = random_resized_crops(image.expand(800, -1, -1, -1), 64, torch.Generator().manual_seed(0)).double()
    h = (out[:, 0, 48].mean(-1) - out[:, 0, 16].mean(-1)) * 2
    w = (out[:, 1, :, 48].mean(-1) - out[:, 1, :, 16].mean(-1)) * 2
    area, ratio = (h * w.abs()) / 160**2, w.abs() / h
    assert 0.33 < area.min() < 0.40
    assert 0.90 < area.max() < 1.03
    assert 0.72 < ratio.min() < 0.80
    assert 1.25 < ratio.max() < 1.38
    assert 0.45 < (w < 0).double().mean() < 0.55
    top, left = out[:, 0].amin((1, 2)), out[:, 1].amin((1, 2))
    assert top.unique().numel() > 30
    assert left.unique().numel() > 30


def test_crops_repeat_with_the_generator():
    image = torch.randint(256, (4, 3, 40, 60), dtype=torch.uint8)
    a, b = (random_resized_crops(image, 24, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (4, 3, 24, 24)


def test_a_missing_root_is_said_at_once_with_the_way_out(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no train and no val folder in .*imagenette2-160\. Unpack https://"):
        ImagenetteDataModule(tmp_path)


@pytest.mark.parametrize("kwargs", [{"image_size": 0}, {"batch_size": -1}, {"decision_fraction": 1.0}])
def test_refuses_numbers_out_of_range(tmp_path, kwargs):
    (name,) = kwargs
    with pytest.raises(ConfigurationError, match=f"{name}={kwargs[name]}"):
        ImagenetteDataModule(tmp_path, **kwargs)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "imagenette2-160").is_dir(), reason="no ../shared/data/imagenette2-160")
def test_the_base_classifier_scores_what_its_readme_says():
    from hqp_lightning.models import build_network

    net = build_network("mobilenet_v3_small", 10, checkpoint=SHARED / "weights/mobilenet_v3_small_imagenette128.pth")
    data = ImagenetteDataModule(SHARED / "data", cache=False)
    data.setup()
    net.eval()
    right = total = 0
    parts = [loader.dataset for loader in (data.val_dataloader(), data.test_dataloader())]
    assert sum(map(len, parts)) == 3925
    with torch.no_grad():
        for part in parts:  # every second image: a standard error of 0.4 %
            for start in range(0, len(part), 128):
                images, labels = part.__getitems__(list(range(start, min(start + 128, len(part)), 2)))
                right += int((net(images).argmax(1) == labels).sum())
                total += len(labels)
    assert abs(right / total - 0.9248) < 0.01
