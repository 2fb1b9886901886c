"""What a run costs: passes, solves, memory."""

import importlib
import math
import tracemalloc

import numpy as np
import pytest
from jobs import batches, calculator, model
from loaders import CountingLoader
from problems import N, influence, make_setting

from influence_core import Cg, Direct, Ekfac, InverseHarmonicMean, NystroemSketch
from influence_core.calculators import SequentialInfluenceCalculator
from influence_core.fitted import FittedInfluence
from influence_core.testing import LeastSquares

M = 31


@pytest.fixture
def solved(monkeypatch):
    """The numbers of right-hand sides of all solves."""
    sizes, solve = [], FittedInfluence.solve

    def counting(self, rows, regularization):
        sizes.append(next(iter(rows.values())).shape[0])
        return solve(self, rows, regularization)

    monkeypatch.setattr(FittedInfluence, "solve", counting)
    return sizes


def test_each_test_chunk_is_solved_once_and_costs_one_pass(solved):
    setting = make_setting("logistic")
    test = CountingLoader(batches(setting, M))
    train = CountingLoader(setting.loader())
    lazy = calculator(model(setting)).influences(test, train)
    assert (test.passes, train.passes) == (0, 0)
    height, width = lazy.chunks
    assert height < M
    assert width < N
    assert (test.since(), train.since()) == (1, 1)  # sizes and hashes
    lazy.compute()
    assert (test.since(), train.since()) == (1, math.ceil(M / height))
    assert solved == [min(height, M - start) for start in range(0, M, height)]


def test_several_batches_are_solved_together(solved):
    setting = make_setting("logistic")
    roomy = calculator(model(setting), max_memory=2**20)
    train = CountingLoader(setting.loader())
    roomy.influences(batches(setting, M, (3,)), train).compute()
    assert solved == [M]
    assert train.passes == 2


def test_a_batch_that_is_too_large_is_cut(solved):
    setting = make_setting("logistic")
    lazy = calculator(model(setting)).influences([setting.test(M)], [setting.train])
    lazy.compute()
    assert max(solved) == lazy.chunks[0] < M


def test_chunks_end_with_batches_where_there_is_room():
    setting = make_setting("logistic")
    lazy = calculator(model(setting), max_memory=2**14).influences(
        batches(setting, M, (3,)), setting.loader()
    )
    assert lazy.chunks[0] % 3 == 0
    assert lazy.chunks[1] % 5 == 0


def test_lazy_factors_are_solved_once_for_their_scores(solved):
    setting = make_setting("logistic")
    sequential = calculator(model(setting))
    train = CountingLoader(setting.loader())
    factors = sequential.influence_factors(batches(setting, M))
    lazy = sequential.influences_from_factors(factors, train)
    lazy.compute()
    assert sum(solved) == M
    assert train.passes == 1 + math.ceil(M / lazy.chunks[0])


def test_given_factors_are_not_solved(solved):
    setting = make_setting("logistic")
    sequential = calculator(model(setting))
    factors = sequential.influence_factors(batches(setting, M)).compute()
    solved.clear()
    sequential.influences_from_factors(factors, setting.loader()).compute()
    assert solved == []


# 1,280 × 24 inputs are 246 kB, and the scores 1.3 MB: a budget of 512 kB is felt
POINTS, TESTS, INPUTS, OUTPUTS, BATCH = 1280, 128, 24, 8, 16
BUDGET = 2**19


def wide(method, **options):
    """A model of 200 parameters with products of a quarter of the budget, and loaders."""
    rng = np.random.default_rng(0)
    net = LeastSquares.random(INPUTS, OUTPUTS, seed=0)

    def points(count, size):
        x, y = rng.standard_normal((count, INPUTS)), rng.standard_normal((count, OUTPUTS))
        return [(x[i : i + size], y[i : i + size]) for i in range(0, count, size)]

    test, train = points(TESTS, BATCH), points(POINTS, BATCH)
    options = {"regularization": 0.1, "max_memory": BUDGET // 4, **options}
    setting = type("Net", (), {"model": net})
    return influence(setting, method, **options).fit(train), test, train


def peak(run):
    """The bytes that a run holds at most beside what was there before."""
    importlib.import_module("tqdm")  # which a run imports, once
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    run()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most - before


METHODS = [
    Direct(),
    Cg(rtol=1e-4),
    Cg(rtol=1e-4, solve_simultaneously=True),
    NystroemSketch(20),
    InverseHarmonicMean(),
    Ekfac(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_budget_is_held(method):
    fitted, test, train = wide(method)
    sequential = SequentialInfluenceCalculator(fitted, max_memory=BUDGET)

    lazy = sequential.influences(test[:4], train[:40])
    assert lazy.chunks[0] < 4 * BATCH or type(method) in (Direct, Ekfac, NystroemSketch)

    def consume():
        for _ in lazy.blocks():
            pass

    used = peak(consume)
    assert 0.25 * BUDGET <= used <= 1.25 * BUDGET


@pytest.mark.parametrize("mode", ["up", "perturbation"])
def test_the_budget_is_held_on_the_way_to_disk(mode, tmp_path):
    pytest.importorskip("zarr")
    fitted, test, train = wide(Direct())
    sequential = SequentialInfluenceCalculator(fitted, max_memory=BUDGET)

    def write(name):
        sequential.influences(test, train[:10], mode).to_zarr(tmp_path / name)

    write("first.zarr")
    assert peak(lambda: write("second.zarr")) <= 1.25 * BUDGET


def test_memory_does_not_grow_with_the_points(tmp_path):
    pytest.importorskip("zarr")
    fitted, test, train = wide(Direct())
    sequential = SequentialInfluenceCalculator(fitted, max_memory=BUDGET)

    def used(m, n):
        name = tmp_path / f"{m}-{n}.zarr"
        return peak(lambda: sequential.influences(test[:m], train[:n]).to_zarr(name))

    used(1, 1)
    assert used(8, 80) <= 1.25 * used(4, 40)


def test_the_ranking_holds_no_matrix():
    fitted, test, train = wide(Direct())
    sequential = SequentialInfluenceCalculator(fitted, max_memory=BUDGET)
    sequential.top_k(test, train, 3)
    used = peak(lambda: sequential.top_k(test, train, 3))
    assert used <= 1.25 * BUDGET < TESTS * POINTS * 8
