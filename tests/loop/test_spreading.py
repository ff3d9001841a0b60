import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hqp_lightning.loop.spreading import spread


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(100))


def test_a_sorted_folder_gives_samples_of_every_class():
    labels = torch.arange(10).repeat_interleave(100)
    loader = DataLoader(TensorDataset(labels), 25)
    (first, second) = (y for (y,) in spread(loader, 50))
    assert torch.cat([first, second]).bincount().tolist() == [5] * 10
    assert sum(len(y) for (y,) in spread(loader, 5000)) == 1000


def test_what_can_not_be_spread_gives_its_first_batches():
    assert [b.tolist() for b in spread(DataLoader(Stream(), 4), 8)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert list(spread([1, 2, 3], 20)) == [1, 2]
    shuffled = DataLoader(range(100), 10, shuffle=True)
    assert [len(b) for b in spread(shuffled, 20)] == [10, 10]


def test_at_most_so_many_batches():
    assert [b.tolist() for b in spread(DataLoader(range(100), 2), 50, batches=2)] == [[0, 25], [50, 75]]
