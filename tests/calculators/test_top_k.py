"""The strongest training points, without the matrix of all scores."""

import sys

import numpy as np
import pytest
from jobs import batches, calculator, model
from methods import BATCH_INVARIANT
from namespaces import LIBRARIES
from problems import N, make_setting

from influence_core.calculators import TopK
from influence_core.calculators.top_k import collect
from influence_core.errors import MissingExtraError, OptionError

RNG = np.random.default_rng(0)


def sorted_by_hand(scores, k, sign):
    """Indices of the largest (sign 1) or smallest scores of every row, ties by index."""
    rows = [sorted(range(len(row)), key=lambda j: (-sign * row[j], j))[:k] for row in scores]
    return np.array(rows)


def assert_ranks(top, scores, k):
    for ranking, sign in ((top.helpful, 1), (top.harmful, -1)):
        want = sorted_by_hand(scores, k, sign)
        np.testing.assert_array_equal(ranking.indices, want)
        np.testing.assert_array_equal(ranking.scores, np.take_along_axis(scores, want, 1))


def streamed(scores, k, height, width):
    m, n = scores.shape
    rows = [slice(i, min(i + height, m)) for i in range(0, m, height)]
    return collect(((r, j, scores[r, j : j + width]) for r in rows for j in range(0, n, width)), k)


@pytest.mark.parametrize("k", [1, 3, 40, 100])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 3), (100, 5), (200, 40), (3, 100)])
def test_it_is_exact_however_the_chunks_are_cut(k, height, width):
    scores = RNG.standard_normal((101, 40))
    assert_ranks(streamed(scores, k, height, width), scores, k)


@pytest.mark.parametrize("k", [1, 4, 17])
def test_equal_scores_are_ordered_by_index(k):
    scores = RNG.integers(-2, 3, (30, 50)).astype(np.float32)
    assert_ranks(streamed(scores, k, 8, 9), scores, k)
    assert_ranks(streamed(np.zeros((3, 20)), k, 2, 3), np.zeros((3, 20)), k)


def test_signed_zeros_are_equal():
    scores = np.array([[0.0, -0.0, 0.0, -0.0]])
    np.testing.assert_array_equal(streamed(scores, 3, 1, 2).helpful.indices, [[0, 1, 2]])


def test_parts_can_be_merged_in_any_order():
    scores = RNG.integers(-3, 4, (12, 60)).astype(float)
    parts = [TopK.of(scores[:, j : j + 11], j, 5) for j in range(0, 60, 11)]
    for order in (parts, parts[::-1], [parts[i] for i in (3, 0, 5, 1, 4, 2)]):
        merged = order[0]
        for part in order[1:]:
            merged = merged.merged(part, 5)
        assert_ranks(merged, scores, 5)


@pytest.mark.parametrize("case", BATCH_INVARIANT)
def test_every_method(case):
    setting = make_setting("tanh_cross_entropy")
    options = {"second_order_mode": "generalized_gauss_newton", "max_memory": 2**12}
    sequential = calculator(case.fitted(setting, regularization=1e-2, **options))
    test = batches(setting, 6, (2,))
    scores = np.asarray(sequential.influences(test, setting.loader()).compute())
    assert_ranks(sequential.top_k(test, setting.loader(), 4), scores, 4)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library(library):
    setting = make_setting("logistic", library)
    sequential = calculator(model(setting))
    test = batches(setting, 9)
    scores = library.host(sequential.influences(test, setting.loader()).compute())
    top = sequential.top_k(test, setting.loader(), 3)
    assert_ranks(top, scores, 3)
    assert top.helpful.indices.dtype == np.int64
    assert top.helpful.scores.dtype == library.dtype
    assert top.k == 3


def test_more_than_there_are_is_all_of_them():
    setting = make_setting("logistic")
    top = calculator(model(setting)).top_k(batches(setting, 4), setting.loader(), 1000)
    assert top.helpful.indices.shape == (4, N)
    np.testing.assert_array_equal(top.helpful.indices, top.harmful.indices[:, ::-1])


@pytest.mark.parametrize("k", [0, -1, 1.5, "3", True])
def test_a_number_that_is_none_is_refused(k):
    setting = make_setting("logistic")
    with pytest.raises(OptionError, match="`k` must be"):
        calculator(model(setting)).top_k(batches(setting, 4), setting.loader(), k)


def test_perturbation_has_no_ranking():
    setting = make_setting("logistic")
    lazy = calculator(model(setting)).influences(
        batches(setting, 4), setting.loader(), "perturbation"
    )
    with pytest.raises(OptionError, match="mode 'up'"):
        lazy.top_k(3)


def test_the_table_has_the_first_test_points():
    scores = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    assert str(TopK.of(scores, 0, 2)).splitlines() == [
        "  test  kind     training point (score)",
        "     0  helpful  0 (+1)  2 (+0.5)",
        "     0  harmful  1 (-2)  2 (+0.5)",
        "     1  helpful  1 (+3)  0 (+0)",
        "     1  harmful  2 (-1)  0 (+0)",
    ]
    many = str(TopK.of(RNG.standard_normal((9, 30)), 0, 8)).splitlines()
    assert many[-1] == "… and 4 more test points"
    assert many[1].endswith("…")


def test_a_data_frame():
    pytest.importorskip("pandas")
    frame = TopK.of(np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]), 0, 2).to_pandas()
    assert list(frame.columns) == ["test", "kind", "rank", "train", "score"]
    assert len(frame) == 8
    row = frame[(frame.test == 1) & (frame.kind == "harmful") & (frame["rank"] == 1)].iloc[0]
    assert (row.train, row.score) == (2, -1.0)


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        TopK.of(np.ones((1, 2)), 0, 1).to_pandas()
