"""LiSSA reads a DataLoader by index: its sampler and collate function, no random state changed."""

import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from zoo import convex_case, rng

from influence_core import ConvergenceWarning, Influence
from influence_core.methods.lissa import Lissa
from influence_torch.indexed import indexed_batches
from influence_torch.problem import TorchProblem

CASE = convex_case()
DATA = TensorDataset(CASE.x, CASE.y)
N = len(CASE.x)


class Points(Dataset):
    """Dicts, counted as they are loaded; every one is drawn for."""

    def __init__(self):
        self.loaded = []

    def __len__(self):
        return N

    def __getitem__(self, index):
        np.random.rand()  # noqa: NPY002
        random.random()
        torch.rand(1)
        self.loaded.append(index)
        return {"x": CASE.x[index], "y": CASE.y[index]}


class AtOnce(Points):
    """Loads the points of a batch together."""

    def __getitems__(self, indices):
        self.loaded.extend(indices)
        return [{"x": CASE.x[i], "y": CASE.y[i]} for i in indices]


class Stream(IterableDataset):
    """Has no indices."""

    def __iter__(self):
        yield from zip(CASE.x, CASE.y, strict=True)


class Own(DataLoader):
    """Iterates in its own way."""

    def __iter__(self):
        for x, y in super().__iter__():
            yield x + 1.0, y


class Reused(BatchSampler):
    """Yields one and the same list."""

    def __iter__(self):
        batch = []
        for start in range(0, N, 6):
            batch[:] = range(start, min(start + 6, N))
            yield batch


def collate(points):
    return torch.stack([p["x"] for p in points]), torch.stack([p["y"] for p in points])


OWN = rng(3)
LOADERS = {
    "plain": lambda: DataLoader(DATA, 7),
    "shuffled": lambda: DataLoader(DATA, 7, shuffle=True),
    "own generator": lambda: DataLoader(DATA, 7, shuffle=True, generator=OWN),
    "sampler": lambda: DataLoader(DATA, 7, sampler=RandomSampler(DATA, generator=OWN)),
    "subset": lambda: DataLoader(DATA, 4, sampler=SubsetRandomSampler(range(3, 18))),
    "with replacement": lambda: DataLoader(
        DATA, 4, sampler=WeightedRandomSampler([1.0] * N, 15, generator=OWN)
    ),
    "with replacement, global": lambda: DataLoader(
        DATA, 4, sampler=WeightedRandomSampler([1.0] * N, 15)
    ),
    "drop last": lambda: DataLoader(DATA, 7, shuffle=True, drop_last=True),
    "batch sampler": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(RandomSampler(DATA, generator=OWN), 5, False)
    ),
    "one list": lambda: DataLoader(DATA, batch_sampler=Reused(SequentialSampler(DATA), 6, False)),
    "no batching": lambda: DataLoader(
        DATA, batch_size=None, sampler=BatchSampler(RandomSampler(DATA, generator=OWN), 5, False)
    ),
    "no batching, one list": lambda: DataLoader(
        DATA, batch_size=None, sampler=Reused(SequentialSampler(DATA), 6, False)
    ),
    "collate": lambda: DataLoader(Points(), 7, shuffle=True, collate_fn=collate),
    "points at once": lambda: DataLoader(AtOnce(), 7, shuffle=True, collate_fn=collate),
}
IN_ORDER = {
    "stream": lambda: DataLoader(Stream(), 7),
    "own iteration": lambda: Own(DATA, 7, shuffle=True),
    "iterable": lambda: dict.fromkeys(range(3)),
}
loaders = pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)


def random_state():
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = random.getstate(), (name, keys.tolist(), *rest), torch.get_rng_state().tolist()
    return *states, OWN.get_state().tolist()


def fit(loader, **options):
    method = Lissa(**{"scale": None, "maxiter": 40, "warn_on_max_iteration": False, **options})
    return Influence(CASE.model, CASE.loss, method, regularization=0.1).fit(loader)


def recorded(loader):
    """The batches that the loader yields when no random state moves but by reading it."""
    problem = TorchProblem(CASE.model, CASE.loss)
    return [(batch.x, batch.y) for batch in problem.batches(loader)]


@loaders
def test_the_batches_of_one_pass(make):
    loader = make()
    before = random_state()
    indexed = indexed_batches(loader)
    want = recorded(loader)
    assert len(indexed) == len(want) > 2
    for index in reversed(range(len(want))):
        for got, tensor in zip(indexed[index], want[index], strict=True):
            assert torch.equal(got, tensor)
    assert random_state() == before


@loaders
def test_answers_are_those_of_the_same_batches_in_a_list(make):
    loader = make()
    before = random_state()
    fitted = fit(loader)
    got = fitted.influences(*CASE.part(0, 5), *CASE.part(None))
    assert random_state() == before
    want = fit(recorded(loader)).influences(*CASE.part(0, 5), *CASE.part(None))
    assert torch.allclose(got, want, rtol=1e-10, atol=0)


@loaders
def test_what_the_user_draws_changes_no_answer(make):
    """The batches are those of `fit`, wherever the generators have moved since."""
    fitted = fit(make(), maxiter=3)
    first = fitted.influence_factors(*CASE.part(0, 5))
    torch.rand(3)
    torch.rand(3, generator=OWN)
    assert torch.equal(fitted.influence_factors(*CASE.part(0, 5)), first)


@pytest.mark.parametrize("make", IN_ORDER.values(), ids=IN_ORDER)
def test_what_can_only_be_read_in_order(make):
    assert indexed_batches(make()) is None


@pytest.mark.parametrize("kind", ["stream", "own iteration"])
def test_data_without_indices_is_held_in_memory(kind):
    loader = IN_ORDER[kind]()
    before = random_state()
    fitted = fit(loader)
    got = fitted.influences(*CASE.part(0, 5), *CASE.part(None))
    assert random_state() == before
    want = fit(recorded(loader)).influences(*CASE.part(0, 5), *CASE.part(None))
    assert torch.allclose(got, want, rtol=1e-10, atol=0)


def test_lists_are_their_own_index():
    batches = CASE.loader()
    assert indexed_batches(batches) is batches
    assert indexed_batches(tuple(batches)) == tuple(batches)


def test_a_batch_is_loaded_when_it_is_needed():
    points = Points()
    fitted = fit(DataLoader(points, 5, collate_fn=collate), scale=20.0, maxiter=3)
    rows = torch.ones(2, 15, dtype=torch.float64)
    points.loaded.clear()
    fitted.apply_inverse(rows)
    steps, measured = points.loaded[:-N], points.loaded[-N:]
    assert measured == list(range(N))
    assert 11 <= len(steps) <= 15  # three batches of five points, one of them perhaps the short one
    assert len(set(steps)) == len(steps)


def test_a_short_last_batch_and_the_dense_answer():
    want = CASE.dense().influences(*CASE.part(0, 5), *CASE.part(None), regularization=0.1)
    got = fit(DataLoader(DATA, N - 1, shuffle=True, generator=OWN), scale=30.0, maxiter=4000)
    error = got.influences(*CASE.part(0, 5), *CASE.part(None)) - want
    assert error.norm() < 0.02 * want.norm()
    one = fit(DataLoader(DATA, N), rtol=1e-10, maxiter=4000)
    error = one.influences(*CASE.part(0, 5), *CASE.part(None)) - want
    assert error.norm() < 1e-6 * want.norm()
    assert one.report.converged.all()


def test_float32_and_a_move():
    model = convex_case(dtype=torch.float32)
    loader = DataLoader(TensorDataset(model.x, model.y), 7, shuffle=True)
    fitted = Influence(model.model, model.loss, Lissa(maxiter=20), regularization=0.1).fit(loader)
    with pytest.warns(ConvergenceWarning):
        got = fitted.influences(*model.part(0, 5))
    assert got.dtype == torch.float32
    with pytest.warns(ConvergenceWarning):
        assert torch.equal(fitted.to("cpu").influences(*model.part(0, 5)), got)


def test_indexed_batches_pickle():
    indexed = indexed_batches(DataLoader(DATA, 7, shuffle=True))
    copy = pickle.loads(pickle.dumps(indexed))
    assert len(copy) == len(indexed)
    for got, want in zip(copy, indexed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
