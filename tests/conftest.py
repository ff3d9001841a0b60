import gc
import hashlib
import logging
import os
import pickle
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from classifier import quiet_trainer
from lightning.fabric.utilities import registry
from lightning.pytorch import seed_everything
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data._utils import signal_handling
from torchvision.datasets import CIFAR10

from hqp_lightning.board.rtx import missing

# On some virtual machines the kernel can't restore AMX registers after a signal was handled, and the process ends by
# SIGSEGV. Torch handles SIGCHLD of loaders' workers in Python; without that, workers that fail are noticed, too.
signal_handling._SIGCHLD_handler_set = True

# Processes of the suite share the cores, and what they start does so as well. One alone has a single thread, too: small
# layers are slower on two, and launchers that leave the number to torch would round otherwise than those that set it.
cores = os.cpu_count() or 1
threads = max(1, cores // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", cores)))
os.environ.setdefault("OMP_NUM_THREADS", str(threads))
torch.set_num_threads(threads)

# Every Trainer looks through all that is installed for callbacks of others, five milliseconds long.
registry.entry_points = cache(registry.entry_points)

imported = 0


def settle() -> None:
    """What imports made is no garbage, and half a million objects, which every full collection would look through."""
    global imported
    if len(sys.modules) > imported + 100:
        gc.collect()
        gc.freeze()
        imported = len(sys.modules)


def pytest_collection_finish() -> None:
    """All test modules are imported."""
    settle()


def pytest_runtest_logfinish() -> None:
    """Some libraries are only imported where they are used."""
    settle()


WNIDS = "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 n03888257"


@pytest.fixture(scope="session")
def imagenette_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the layout of Imagenette, with five small generated pictures a class and split."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for wnid in WNIDS.split():
            folder = root / "imagenette2-160" / split / wnid
            folder.mkdir(parents=True)
            for i in range(5):
                coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                # The public archive holds pictures whose shorter side is 160 px.
                coarse.resize((160 + 20 * (i == 4), 160), Image.Resampling.BICUBIC).save(folder / f"{wnid}_{i}.JPEG")
    return root


@pytest.fixture(scope="session")
def imagenet_root(imagenette_root: Path) -> Path:
    """The same pictures in the layout of torchvision's ImageNet."""
    root, wnids = imagenette_root / "imagenette2-160", WNIDS.split()
    torch.save(({w: (f"name of {w}",) for w in wnids}, wnids), root / "meta.bin")
    return root


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Hydra's log handlers write to the streams of the test that it ran in, which are closed when the next one logs."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in {*root.handlers} - {*handlers}:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


@pytest.fixture(autouse=True)
def no_compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nine compilations at the end of every small export would take minutes; tests of them ask for ``compiler``."""
    with pytest.MonkeyPatch.context() as patched:  # its own: a test may undo what it patched itself
        if "compiler" not in request.fixturenames:
            patched.setattr("hqp_lightning.shipping.compiling.missing", lambda: "no compiler in this test")
        yield


@pytest.fixture
def compiler() -> None:
    """Needs NVIDIA's compiler."""
    if (reason := missing()) is not None:
        pytest.skip(reason)


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's files with few generated images, and their checksums where torchvision has the published ones."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name, n):
        pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": [i % 10 for i in range(n)]})

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}", 20) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 40)])
    name, md5 = write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


@pytest.fixture(scope="session")
def masks_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and masks: the class is the brightest of three colours, and some pixels have none."""
    root = tmp_path_factory.mktemp("masked")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        classes = coarse.argmax(2).astype(np.uint8)
        classes[0, 0] = 255
        for folder, values, kind in (("images", coarse, "jpg"), ("masks", classes, "png")):
            path = root / folder / f"{i:02}.{kind}"
            Image.fromarray(values).resize((50, 40), Image.Resampling.NEAREST).save(path)
    return root


@pytest.fixture(scope="session")
def digits():
    data = load_digits()
    x = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
    return x, torch.tensor(data.target)


def paired(digits, train, val, batch_size):
    x, y = digits
    ends = (0, train), (1200, 1200 + val)
    return tuple(DataLoader(TensorDataset(x[a:b], y[a:b]), batch_size) for a, b in ends)


@pytest.fixture
def loaders(digits):
    """Train and validation loader, small and in a fixed order."""
    return paired(digits, 320, 200, 64)


@pytest.fixture
def small_loaders(digits):
    """As many batches, of a quarter of the images: where nothing need be learnt."""
    return paired(digits, 80, 50, 16)


@pytest.fixture
def make_trainer(tmp_path):
    """A quiet CPU trainer: ``make_trainer(max_epochs, callbacks, **kwargs)``."""
    seed_everything(0, verbose=False)
    return partial(quiet_trainer, tmp_path)
