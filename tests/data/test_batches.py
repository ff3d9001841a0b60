import collections

import pytest
import torch

from hqp_lightning.data.batches import ImageBatches, image_loader, stratified_halves
from hqp_lightning.data.splits import SplitDataModule
from hqp_lightning.errors import ConfigurationError


def _plain(images, generator):
    return images


def test_split_is_stratified_disjoint_complete_and_deterministic():
    labels = [i % 7 for i in range(350)] + [0] * 70
    first, second = stratified_halves(labels, 0.4, seed=3)
    assert sorted(first + second) == list(range(420))
    assert not set(first) & set(second)
    counts = collections.Counter(labels[i] for i in first)
    assert counts == {0: 48, **dict.fromkeys(range(1, 7), 20)}  # 40 % of 120 and of 50
    assert stratified_halves(labels, 0.4, seed=3) == (first, second)
    assert stratified_halves(labels, 0.4, seed=4) != (first, second)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_split_refuses_a_fraction_outside(fraction):
    with pytest.raises(ConfigurationError, match=r"in \(0, 1\), got"):
        stratified_halves([0, 1, 0, 1], fraction, seed=0)


def test_split_refuses_a_class_with_one_image():
    with pytest.raises(ConfigurationError, match="cannot divide 3 images"):
        stratified_halves([0, 0, 1], 0.5, seed=0)


def test_loader_gives_the_images_that_indexing_gives():
    images, labels = torch.rand(10, 3, 4, 4), torch.arange(10)
    dataset = ImageBatches(images, labels, _plain)
    batches = list(image_loader(dataset, batch_size=4))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in batches]), images)
    assert torch.equal(torch.cat([y for _, y in batches]), labels)
    image, label = dataset[7]
    assert torch.equal(image, images[7])
    assert label == 7


def test_training_order_is_seeded_complete_and_changes_with_the_epoch():
    dataset = ImageBatches(torch.rand(9, 1, 2, 2), torch.arange(9), _plain)

    def epochs(seed):
        loader = image_loader(dataset, batch_size=3, train=True, seed=seed)
        return [torch.cat([y for _, y in loader]).tolist() for _ in range(2)]

    first, second = epochs(1)
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second
    assert epochs(1) == [first, second]
    assert epochs(2) != [first, second]


def test_training_leaves_out_an_incomplete_batch_unless_it_is_the_only_one():
    dataset = ImageBatches(torch.rand(9, 1, 2, 2), torch.arange(9), _plain)
    assert len(list(image_loader(dataset, batch_size=4, train=True))) == 2
    assert len(list(image_loader(dataset, batch_size=20, train=True))) == 1


def test_a_data_module_says_what_becomes_of_a_batch():
    with pytest.raises(TypeError, match="abstract.*_augment.*_prepare"):
        SplitDataModule(4, 0)
