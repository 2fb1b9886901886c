"""Loaders whose points would stand in no known row or column."""

import numpy as np
import pytest
from jobs import batches, calculator, model
from problems import make_setting

from influence_core.errors import DataError, DataTypeError


@pytest.fixture
def setting():
    return make_setting("logistic")


class Loader(list):
    """A list of batches with attributes."""


def with_(batches, **attributes):
    loader = Loader(batches)
    vars(loader).update(attributes)
    return loader


class RandomSampler:
    pass


class SubsetRandomSampler:
    pass


class SequentialSampler:
    pass


class Outer:
    def __init__(self, sampler):
        self.sampler = sampler


SHUFFLING = [
    {"shuffle": True},
    {"sampler": RandomSampler()},
    {"sampler": SubsetRandomSampler()},
    {"sampler": SequentialSampler(), "batch_sampler": Outer(RandomSampler())},
    {"sampler": type("ByLength", (RandomSampler,), {})()},
    {"sampler": type("DistributedSampler", (), {"shuffle": True})()},
]
ORDERED = [
    {"shuffle": False},
    {"shuffle": "by hand"},
    {"sampler": SequentialSampler(), "batch_sampler": Outer(SequentialSampler())},
    {"sampler": None, "batch_sampler": None},
    {"sampler": type("DistributedSampler", (), {"shuffle": False})()},
]


@pytest.mark.parametrize("side", ["test", "train"])
@pytest.mark.parametrize("attributes", SHUFFLING)
def test_a_loader_that_shuffles_is_refused(setting, attributes, side):
    sides = {"test": batches(setting, 4), "train": setting.loader()}
    sides[side] = with_(sides[side], **attributes)
    with pytest.raises(DataError, match=rf"{side}_loader.*one known order.*shuffle=False"):
        calculator(model(setting)).influences(sides["test"], sides["train"])


@pytest.mark.parametrize("attributes", ORDERED)
def test_a_loader_in_order_is_taken(setting, attributes):
    train = with_(setting.loader(), **attributes)
    calculator(model(setting)).influences(batches(setting, 4), train).compute()


@pytest.mark.parametrize("options", [{"shuffle": True}, {"sampler": "random"}, {"batch": "random"}])
def test_torch_loaders_that_shuffle_are_refused(setting, options):
    data = pytest.importorskip("torch.utils.data")
    points = data.TensorDataset(*make_setting("logistic", torch_library()).train)
    random = data.RandomSampler(points)
    options = {
        "shuffle": {"shuffle": True},
        "sampler": {"sampler": data.WeightedRandomSampler([1.0] * 23, 23)},
        "batch": {"batch_sampler": data.BatchSampler(random, 5, drop_last=False)},
    }[next(iter(options))]
    sequential = calculator(model(make_setting("logistic", torch_library())))
    with pytest.raises(DataError, match="one known order"):
        sequential.influence_factors(data.DataLoader(points, **options))
    ordered = data.DataLoader(points, batch_size=5)
    assert sequential.influence_factors(ordered).shape == (23, 15)


def torch_library():
    from namespaces import TORCH

    return TORCH


class Shuffling:
    """Batches in another order in every pass; nothing says so."""

    def __init__(self, batches):
        self.batches, self.rng = batches, np.random.default_rng(0)

    def __iter__(self):
        return iter([self.batches[i] for i in self.rng.permutation(len(self.batches))])


class Augmenting(Shuffling):
    def __iter__(self):
        return ((x + self.rng.standard_normal(), y) for x, y in self.batches)


class Shrinking(Shuffling):
    def __iter__(self):
        self.batches = self.batches[:-1]
        return iter(self.batches)


class Growing(Shuffling):
    def __iter__(self):
        self.batches = [*self.batches, self.batches[0]]
        return iter(self.batches)


@pytest.mark.parametrize("kind", [Shuffling, Augmenting, Shrinking, Growing])
@pytest.mark.parametrize("side", ["test", "train"])
def test_other_points_in_another_pass_are_refused(setting, kind, side):
    sides = {"test": batches(setting, 31), "train": setting.loader()}
    sides[side] = kind(sides[side])
    lazy = calculator(model(setting)).influences(sides["test"], sides["train"])
    with pytest.raises(DataError, match=f"{side}_loader.* must yield the same points in the same"):
        lazy.compute()


def test_what_can_be_iterated_once_is_refused(setting):
    with pytest.raises(DataTypeError, match="used up after one pass"):
        calculator(model(setting)).influences(iter(setting.loader()), setting.loader())


def test_what_is_no_iterable_is_refused(setting):
    with pytest.raises(DataTypeError, match="train_loader"):
        calculator(model(setting)).influences(setting.loader(), 3)


def test_no_batches_are_refused(setting):
    with pytest.raises(DataError, match="at least one batch"):
        calculator(model(setting)).influences([], setting.loader()).compute()


def test_points_are_checked_before_anything_is_computed(setting):
    *rest, (x, y) = setting.loader()
    x = x.copy()
    x[0, 0] = np.nan
    lazy = calculator(model(setting)).influences(batches(setting, 4), [*rest, (x, y)])
    with pytest.raises(DataError, match=r"train_loader.*batch 5"):
        _ = lazy.shape
