"""A folder of pictures and a folder of masks: segmentation of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from hqp_lightning.data.masks import MaskedSplitDataModule
from hqp_lightning.data.splits import IMAGENET_MEAN, IMAGENET_STD, normalize
from hqp_lightning.errors import ConfigurationError

__all__ = ["MaskFolderDataModule"]

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


class MaskFolderDataModule(MaskedSplitDataModule):
    """``root/images/NAME.jpg`` (or .png, ...) and ``root/masks/NAME.png``, a class index for every pixel of it.

    Masks are grey or with a palette, as VOC's; 255 is a pixel without a label. With a fixed seed three fifths of the
    pictures are for training, one is decided on and one held out. Both are resized to a square of ``image_size``
    (pictures bilinear, antialiased; masks to the nearest), pictures normalised by ImageNet's mean and standard
    deviation; every second training picture is flipped.

    Args:
        root: of the two folders.
        num_classes: background included; what the masks may hold, beside 255.
        image_size: side of the network's input, px.
        batch_size: pictures in a batch.
        seed: of the division, the order and the flips.
        num_workers: loader processes.

    Raises:
        ConfigurationError: fewer than five pictures, a picture without a mask, a number below one; when it is met: a
            file that is no image, a mask with another class.
    """

    def __init__(
        self,
        root: str | Path,
        num_classes: int,
        image_size: int = 224,
        batch_size: int = 16,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        if min(image_size, batch_size, num_classes) < 1:
            raise ConfigurationError(f"numbers must be at least 1, got {image_size=}, {batch_size=}, {num_classes=}")
        self.root, self.image_size, self.num_classes = Path(root), image_size, num_classes

    @property
    def preprocessing(self) -> dict[str, object]:
        """What a caller of the deployed model must do: resize (px), then ``(x - mean) / std`` on [0, 1]."""
        return {"resize": [self.image_size] * 2, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures and divide them."""
        if self._sets:
            return
        pairs = self._pairs()
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(self.seed)).tolist()
        train, val = round(0.6 * len(pairs)), round(0.8 * len(pairs))
        for name, part in (("train", order[:train]), ("val", order[train:val]), ("test", order[val:])):
            chosen = [pairs[i] for i in sorted(part)]
            self._sets[name] = (
                _Files([picture for picture, _ in chosen], self._picture),
                _Files([mask for _, mask in chosen], self._mask),  # type: ignore[assignment]
            )

    def _prepare(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return normalize(images)

    def _pairs(self) -> list[tuple[Path, Path]]:
        folder = self.root / "images"
        pictures = sorted(p for p in folder.glob("*") if p.suffix.lower() in _PICTURES and not p.name.startswith("."))
        if len(pictures) < 5:
            raise ConfigurationError(
                f"{len(pictures)} pictures in {folder}, expected at least 5: ROOT/images/NAME.jpg and "
                "ROOT/masks/NAME.png"
            )
        pairs = [(p, self.root / "masks" / f"{p.stem}.png") for p in pictures]
        bare = [p.name for p, mask in pairs if not mask.is_file()]
        if bare:
            raise ConfigurationError(
                f"{len(bare)} of {len(pairs)} pictures have no mask in {self.root / 'masks'}, the first is {bare[0]}: "
                "expected a .png of the same name"
            )
        return pairs

    def _picture(self, path: Path) -> Tensor:
        image = TF.pil_to_tensor(_opened(path).convert("RGB"))
        return TF.resize(image, [self.image_size] * 2, interpolation=v2.InterpolationMode.BILINEAR, antialias=True)

    def _mask(self, path: Path) -> Tensor:
        image = _opened(path)
        if image.mode not in ("L", "P"):
            raise ConfigurationError(f"{path} is of mode {image.mode}; a mask is grey or has a palette, of 8 bits")
        classes = TF.pil_to_tensor(image)
        known = (classes < self.num_classes) | (classes == 255)
        if not known.all():
            raise ConfigurationError(
                f"{path} has class {int(classes[~known].max())}; expected 0 to {self.num_classes - 1}, or 255 without "
                "a label: is data.num_classes right?"
            )
        return TF.resize(classes, [self.image_size] * 2, interpolation=v2.InterpolationMode.NEAREST)[0].long()


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigurationError(f"{path} can't be read as an image: {error}") from error
    return image


class _Files:
    """Tensors of files, made when they are asked for."""

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Tensor]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: list[int], /) -> Tensor:
        with ThreadPoolExecutor() as pool:
            return torch.stack(list(pool.map(self.read, [self.paths[i] for i in indices])))
