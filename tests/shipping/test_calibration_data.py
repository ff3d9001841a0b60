"""Which images set the ranges: of the loader that was asked for, the same after every training."""

import json

import pytest
import torch
from classifier import Classifier, quiet_trainer
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader, Dataset

from hqp_lightning import Int8Export
from hqp_lightning.export import data_sha256


class Noisy(Dataset):
    """Augmented by the global random state."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 0.1 * torch.rand(()), self.y[i]


def calibration(folder, digits, epochs, data, seed):
    seed_everything(seed, verbose=False)
    x, y = digits
    loaders = DataLoader(Noisy(x[:320], y[:320]), 64, shuffle=True), DataLoader(Noisy(x[1200:1400], y[1200:1400]), 64)
    settings = {"engines": ["onnxruntime"], "latency_runs": 1, "threads": 1}
    exported = Int8Export(folder, "val_acc", 0.99, calibration_batches=2, calibration_data=data, **settings)
    quiet_trainer(folder, epochs, [exported]).fit(Classifier(), *loaders)
    return json.loads((folder / "manifest.json").read_text())["calibration"]


@pytest.mark.parametrize("data", ["train", "val"])
def test_the_same_images_however_long_and_with_which_seed_was_trained(tmp_path, digits, data):
    short, long = (calibration(tmp_path / str(n), digits, n, data, seed=n) for n in (1, 2))
    assert short == long
    assert (short["data"], short["batches"]) == (data, 2)


def test_validation_images_calibrate_where_that_is_asked_for(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(Noisy, "__getitem__", lambda self, i: (self.x[i], self.y[i]))
    found = calibration(tmp_path, digits, 1, "val", seed=0)
    assert found["sha256"] == data_sha256([digits[0][1200 : 1200 + 128].numpy()])


def test_images_that_are_no_numbers_are_left_out_and_told(tmp_path, digits, monkeypatch, caplog):
    def item(self, i):
        return self.x[i] * (float("nan") if i == 3 and len(self.x) == 200 else 1), self.y[i]

    monkeypatch.setattr(Noisy, "__getitem__", item)
    found = calibration(tmp_path, digits, 1, "val", seed=0)
    x = digits[0]
    assert found["sha256"] == data_sha256([torch.cat([x[1200:1203], x[1204 : 1200 + 128]]).numpy()])
    assert caplog.text.count("Images with NaN or infinite values are left out of the calibration") == 1
