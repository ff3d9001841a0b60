from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
