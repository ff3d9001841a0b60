"""Pictures with masks: of the digits and of a folder, each held against what it is made of."""

import numpy as np
import pytest
import torch
from PIL import Image

from hqp_lightning.data import DigitCanvasesDataModule, MaskFolderDataModule
from hqp_lightning.errors import ConfigurationError


def test_ink_and_classes_of_the_canvases_agree():
    data = DigitCanvasesDataModule(image_size=64, batch_size=8, canvases=32)
    data.setup("fit")
    again = DigitCanvasesDataModule(image_size=64, batch_size=8, canvases=32)
    again.setup("fit")
    images, masks = next(iter(data.train_dataloader()))
    torch.testing.assert_close(images, next(iter(again.train_dataloader()))[0])
    brightness = images[:, 0] * 0.25 + 0.25
    assert brightness[masks == 0].max() <= 0.36  # darker than ink, but for what lies under another digit's edge
    assert brightness[masks > 0].min() > 0.34
    assert {len(data._sets[n][1]) for n in ("val", "test")} == {8}
    assert len(torch.unique(data._sets["train"][1])) == 11
    with pytest.raises(ConfigurationError, match="image_size must be at least 32"):
        DigitCanvasesDataModule(image_size=16)


def test_pictures_of_a_folder_are_flipped_with_their_masks(masks_root):
    data = MaskFolderDataModule(masks_root, num_classes=3, image_size=40, batch_size=24)
    data.setup("fit")
    assert [len(data._sets[n][1]) for n in ("train", "val", "test")] == [24, 8, 8]
    images, masks = next(iter(data.train_dataloader()))
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    colours = images * std + mean
    agree = colours.argmax(1) == masks  # the class is the strongest colour; JPEG and edges cost some
    assert agree[masks != 255].float().mean() > 0.8
    first = data._sets["train"][1][[0]]
    path = data._sets["train"][1].paths[0]
    expected = np.asarray(Image.open(path).resize((40, 40), Image.Resampling.NEAREST))
    assert (first[0].numpy() == expected).mean() > 0.9


def test_what_is_wrong_with_a_folder_is_one_line(masks_root, tmp_path):
    data = MaskFolderDataModule(masks_root, num_classes=2, image_size=32)
    data.setup("fit")
    batches = iter(data.val_dataloader())
    with pytest.raises(ConfigurationError, match="has class 2; expected 0 to 1, or 255"):
        next(batches)
    with pytest.raises(ConfigurationError, match="0 pictures in .*images, expected at least 5"):
        MaskFolderDataModule(tmp_path, num_classes=2).setup("fit")
    (tmp_path / "images").mkdir()
    for k in range(5):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{k}.png")
    with pytest.raises(ConfigurationError, match="5 of 5 pictures have no mask in .*masks, the first is 0.png"):
        MaskFolderDataModule(tmp_path, num_classes=2).setup("fit")
