"""What finished runs lost on each half of the validation data, image by image; how narrowly the dense one was right.

    python benchmarks/halves.py --data DATA outputs/RECIPE/TIME/deploy [another ...]

The folders are those that ``Int8Export`` filled in Imagenette recipes of 128 px; their dense, pruned and INT8 files run
on OpenVINO, the last once more with its float parts in bfloat16. ``lost``: right by the dense network and wrong by this
one; ``won`` the other way round, so that the drop is their difference; ``KL`` is of the probabilities from the dense
network's, in nats. ``narrowly right`` counts images that the dense network itself has right with its two likeliest
classes less than 0.3 apart. ``--training 24`` adds so many batches of training crops: what was learned by heart.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from printing import print_table

from hqp_lightning.data import ImagenetteDataModule
from hqp_lightning.export import describe
from hqp_lightning.export.engines import OpenVINOBackend

FILES = {
    "dense": ("model.dense.onnx", "fp32"),
    "pruned": ("model.onnx", "fp32"),
    "INT8": ("model.int8.onnx", "int8"),
    "INT8, bf16": ("model.int8.onnx", "int8+bf16"),
}
NARROW, BATCH = 0.3, 64


def log_probabilities(path: Path, precision: str, images: np.ndarray, threads: int) -> torch.Tensor:
    """``[N, classes]`` of images ``[N, 3, H, W]``."""
    if describe(path).inputs[0].shape[-1] == images.shape[1]:
        images = images.transpose(0, 2, 3, 1)
    with (
        tempfile.TemporaryDirectory() as scratch,
        OpenVINOBackend().build(path, precision, scratch, threads=threads, batch_size=BATCH) as engine,
    ):
        found = [torch.as_tensor(engine.run(images[k : k + BATCH])) for k in range(0, len(images), BATCH)]
    return torch.cat(found).double().log_softmax(1)


def rows(args: argparse.Namespace) -> Iterator[list[str]]:
    """For each folder and half."""
    data = ImagenetteDataModule(args.data, image_size=128, batch_size=BATCH, seed=args.seed)
    data.setup("fit")
    data.setup("test")
    halves = {"deciding": data.val_dataloader(), "held out": data.test_dataloader()}
    if args.training:
        halves["training crops"] = islice(data.train_dataloader(), args.training)
    for half, loader in halves.items():
        batches = list(loader)
        images = torch.cat([x for x, _ in batches]).numpy()
        labels = torch.cat([y for _, y in batches])
        for folder in args.deploy:
            kinds = {n: (folder / f, p) for n, (f, p) in FILES.items() if p in OpenVINOBackend().offered()}
            found = {n: log_probabilities(f, p, images, args.threads) for n, (f, p) in kinds.items()}
            right = {n: x.argmax(1) == labels for n, x in found.items()}
            dense, first_two = found["dense"], found["dense"].exp().topk(2).values
            narrow = int((right["dense"] & (first_two[:, 0] - first_two[:, 1] < NARROW)).sum())
            for name, x in found.items():
                lost, won = int((right["dense"] & ~right[name]).sum()), int((right[name] & ~right["dense"]).sum())
                yield [
                    str(folder),
                    half,
                    name,
                    f"{right[name].double().mean():.4f}",
                    f"{-x.gather(1, labels[:, None]).mean():.4f}",
                    f"{(dense.exp() * (dense - x)).sum(1).mean():.4f}",
                    *([f"{narrow} of {len(labels)}", "", ""] if name == "dense" else ["", str(lost), str(won)]),
                ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deploy", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="that of the runs: it splits the data")
    parser.add_argument("--training", type=int, default=0, help="also this many batches of the recipe's training crops")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    header = ["run", "half", "model", "accuracy", "cross-entropy", "KL", "narrowly right", "lost", "won"]
    print_table("images of each half", header, rows(args))


if __name__ == "__main__":
    main()
