"""How long a healing step takes that follows teachers, as they are and compiled: ``compile_teachers``.

    python benchmarks/healing.py [--threads 1]

MobileNetV3-small, 128 px, 32 images: the dense network and, at 192 px under autocast to bfloat16, a second one of a
thousand classes are followed, their features as well, by a network of the same size: a pruned one's own part is
smaller, that of the teachers larger. Weights are random: times do not depend on them. Both kinds take turns.
"""

from __future__ import annotations

import statistics
import time

import torch
from printing import arguments, print_table

from hqp_lightning.models import ImageClassifier, Teacher, build_network

COMPILED = {"as they are": False, "compiled": True}


def model(compiled: bool) -> ImageClassifier:
    """One that follows two networks."""
    further = Teacher(build_network("mobilenet_v3_small", 1000), image_size=192, classes=range(10), dtype="bfloat16")
    net = build_network("mobilenet_v3_small", 10)
    kinds = {"distillation": 0.9, "feature_distillation": 1.0, "channels_last": True}
    made = ImageClassifier(net, 10, teachers=[further], compile_teachers=compiled, **kinds)
    made.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return made.train()


def main() -> None:
    """Print the table."""
    given = arguments(__doc__, threads=1, steps=20)
    torch.manual_seed(0)
    batch = torch.randn(32, 3, 128, 128), torch.arange(32) % 10
    models = {name: model(compiled) for name, compiled in COMPILED.items()}
    first, taken = {}, {name: ([], []) for name in models}
    for step in range(-2, given.steps):
        for name, made in models.items():
            made.zero_grad()
            times = [time.perf_counter()]
            loss = made.training_step(batch, 0)
            times.append(time.perf_counter())
            loss.backward()
            times.append(time.perf_counter())
            first.setdefault(name, times[1] - times[0])
            if step >= 0:
                for row, (a, b) in zip(taken[name], zip(times, times[1:], strict=False), strict=True):
                    row.append(b - a)
    middle = {name: [statistics.median(row) for row in rows] for name, rows in taken.items()}
    rows = [
        [name, f"{first[name]:.1f}", *(f"{1000 * t:.0f}" for t in (*middle[name], sum(middle[name])))]
        + [f"{sum(middle['as they are']) / sum(middle[name]):.2f}x"]
        for name in models
    ]
    header = ["teachers", "first step, s", "forward, ms", "backward, ms", "step, ms", "quicker"]
    print_table(f"32 images, medians of {given.steps} steps", header, rows)


if __name__ == "__main__":
    main()
