"""Scores from what the layers see against the ones that solve for rows of gradients."""

import numpy as np
import pytest
from namespaces import NUMPY, NUMPY_FLOAT32, TORCH
from problems import FEW, MANY, N, fitted, make_setting

from influence_core import CapabilityError, Ekfac, NotImplementedLayerRepresentationException
from influence_core.curvature import Inverse
from influence_core.curvature.kronecker_scores import layer_scores, self_scores
from influence_core.curvature.low_rank import low_rank
from influence_core.layer_check import CHECKED
from influence_core.layers import AffineSeen, Bases
from influence_core.problem import LayerStatistics

LAMBDAS = [1e-3, 1e-1]
ENTRIES = [1, 100, 10**6]


def seen(library, a, g):
    return AffineSeen(library.array(g[None]), None, library.array(a))


def random_sight(library, n, s, outputs=7, inputs=5, seed=0):
    rng = np.random.default_rng(seed)
    shrink = 0.5 ** np.arange(inputs), 0.7 ** np.arange(outputs)
    a, g = (rng.standard_normal((n, s, size.size)) * size for size in shrink)
    return a, g, seen(library, a, g)


def scores_of(left, right, weights, entries=10**6):
    return layer_scores(left, right, Bases(), [weights], entries)[0, ...]


def damped(outputs=7, inputs=5, regularization=1e-2):
    values = np.multiply.outer(0.5 ** np.arange(outputs), 0.6 ** np.arange(inputs))
    return 1.0 / (values + regularization)


@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("m", [1, 3, 30])
@pytest.mark.parametrize(("s_left", "s_right"), [(1, 1), (3, 3), (1, 2), (4, 1)])
def test_layer_scores(library, m, s_left, s_right, entries):
    a, g, left = random_sight(library, m, s_left, seed=1)
    b, h, right = random_sight(library, 11, s_right, seed=2)
    want = np.einsum("mso,msi,oi,nto,nti->mn", g, a, damped(), h, b)
    tolerance = 1e-9 if library.dtype == "float64" else 1e-4
    library.close(scores_of(left, right, damped(), entries), want, tolerance)


@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("s", [1, 3])
def test_self_scores_of_a_layer(library, s, entries):
    a, g, sight = random_sight(library, 11, s)
    want = np.einsum("nso,nsi,oi,nto,nti->n", g, a, damped(), g, a)
    library.close(self_scores(sight, Bases(), library.array(damped()), entries), want)


@pytest.mark.parametrize("library", [NUMPY, NUMPY_FLOAT32], ids=str)
@pytest.mark.parametrize("regularization", [1e-6, 1e-3, 1e-1])
@pytest.mark.parametrize("measured", [False, True])
def test_large_layers_have_a_low_rank(monkeypatch, library, regularization, measured):
    """The short way is taken, and right to its tolerance; measured eigenvalues are not smooth."""
    outputs, inputs = 90, 150
    rng = np.random.default_rng(3)
    values = np.multiply.outer(1.0 / (1 + np.arange(outputs)) ** 2, 0.95 ** np.arange(inputs))
    if measured:
        values = values * rng.uniform(0.9, 1.1, values.shape)
    weights = 1.0 / (values + regularization)
    a, g = (rng.standard_normal((40, 1, size)) for size in (inputs, outputs))
    a, g = a * 0.95 ** (np.arange(inputs) / 2), g / (1 + np.arange(outputs))
    sight = seen(library, a, g)
    left, right = sight.part(0, 12), sight.part(12, 40)
    matrices = np.einsum("nso,nsi->noi", g, a)
    want = np.einsum("moi,oi,noi->mn", matrices[:12], weights, matrices[12:])
    ranks = []

    def spy(*arguments):
        found = low_rank(*arguments)
        ranks.append(found and found.rank)
        return found

    monkeypatch.setattr("influence_core.curvature.kronecker_scores.low_rank", spy)
    got = library.host(scores_of(left, right, weights))
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error < (1e-9 if library is NUMPY else 1e-4)
    if library is NUMPY_FLOAT32 and not measured:
        assert ranks[0] is not None
        assert ranks[0] <= 20


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("shape", [(6, 200), (200, 90), (150, 150)])
def test_the_error_of_the_low_rank_form_is_its_tolerance(tolerance, shape):
    values = np.multiply.outer(0.9 ** np.arange(shape[0]), 0.95 ** np.arange(shape[1]))
    matrix = 1.0 / (values + 1e-3)
    rows, columns = 0.9 ** np.arange(shape[0]), 0.95 ** np.arange(shape[1])
    rows[-1] = 0.0  # what is never met counts for nothing
    found = low_rank(matrix, rows, columns, tolerance, most=100)
    weighted = rows[:, None] * matrix * columns
    missed = weighted - rows[:, None] * (found.left.T @ found.right) * columns
    assert np.linalg.norm(missed) <= 1.01 * tolerance * np.linalg.norm(weighted)
    assert low_rank(matrix, rows, columns, tolerance, most=found.rank - 1) is None
    assert np.isfinite(found.left).all()


def test_a_matrix_that_has_no_low_rank():
    matrix = np.random.default_rng(0).uniform(1, 2, (150, 170))
    assert low_rank(matrix, np.ones(150), np.ones(170), 1e-6, most=70) is None


def test_nothing_but_zeros():
    found = low_rank(np.ones((3, 4)), np.zeros(3), np.ones(4), 1e-6, most=2)
    assert not (found.left.T @ found.right).any()
    sight = seen(NUMPY, np.zeros((2, 1, 4)), np.zeros((2, 1, 3)))
    assert not scores_of(sight, sight, np.ones((3, 4))).any()


@pytest.mark.parametrize("m", [1, FEW, MANY])
@pytest.mark.parametrize("structure", ["full", "layer_wise", "parameter_wise"])
@pytest.mark.parametrize("update_diagonal", [False, True])
def test_both_ways_to_the_scores(library, update_diagonal, structure, m):
    setting = make_setting("tanh_cross_entropy", library)
    method = Ekfac(update_diagonal=update_diagonal)
    model = fitted(setting, method, block_structure=structure, regularization=1e-2)
    state = model._fitted
    left, right = (state.points(pair, "here") for pair in (setting.test(m), setting.train))
    tolerance = 1e-9 if library.dtype == "float64" else 1e-4
    for block in state.blocks:
        inverse = state.inverses[block.name]
        sides = left.of(block.names), right.of(block.names)
        short, reports = inverse.scores(*sides, LAMBDAS)
        long, _ = Inverse.scores(inverse, *sides, LAMBDAS)
        library.close(short, library.host(long), tolerance)
        assert [report.iterations.size for report in reports] == [min(m, N)] * 2
        short, _ = inverse.self_scores([sides[1]], 1e-2)
        long, _ = Inverse.self_scores(inverse, [sides[1]], 1e-2)
        library.close(short, library.host(long), tolerance)


def test_all_blocks_share_one_pass_and_no_gradient_is_formed(monkeypatch):
    setting = make_setting("tanh_cross_entropy")
    model = fitted(setting, Ekfac(), block_structure="layer_wise", regularization=1e-2)
    calls = []
    kind = type(model._fitted.problem)

    def counted(name):
        inside = getattr(kind, name)

        def call(self, *arguments):
            calls.append((name, arguments[0].size))
            return inside(self, *arguments)

        return call

    for name in ("layer_statistics", "gradients", "gradient_products"):
        monkeypatch.setattr(kind, name, counted(name))

    def once(size):
        """A pass over all, one over a point for the memory, and some gradients to compare with."""
        return [("layer_statistics", 1), ("layer_statistics", size), ("gradients", CHECKED)]

    model.influences(*setting.test(6), *setting.train)
    assert sorted(calls) == sorted(once(6) + once(N))
    calls.clear()
    model.influences_over([1e-3, 1e-2, 1e-1], *setting.test(6))
    model.self_influences(setting.loader(8))
    assert sorted(calls) == sorted(once(6) + once(8) * 2 + once(7))


@pytest.mark.parametrize("memory", [1, 10**4])
def test_little_memory(memory):
    """A few points of each side at a time then, down to single ones."""
    setting = make_setting("tanh_cross_entropy")
    want = fitted(setting, Ekfac(), regularization=1e-2)
    got = fitted(setting, Ekfac(), regularization=1e-2, max_memory=memory)
    assert got._fitted.problem.max_memory == memory
    sides = (*setting.test(), *setting.train)
    NUMPY.close(got.influences(*sides), want.influences(*sides), 1e-9)
    NUMPY.close(got.self_influences(setting.loader()), want.self_influences(setting.loader()), 1e-9)


def test_torch_tensors_stay_torch_tensors():
    if not TORCH.installed:
        pytest.skip("torch is not installed")
    setting = make_setting("tanh_cross_entropy", TORCH)
    model = fitted(setting, Ekfac(), regularization=1e-2)
    TORCH.host(model.influences(*setting.test(), *setting.train))


def test_a_source_without_layers():
    from influence_core.sources import Points

    setting = make_setting("logistic")

    class Bare:
        reference = np.zeros(3)

    from influence_core.arrays import exchange_for

    points = Points(Bare(), setting.problem().batch(setting.train), exchange_for(np.ones(1), None))
    with pytest.raises(CapabilityError, match="Bare offers no `layer_statistics`"):
        _ = points.factors


def test_the_points_of_a_call_are_checked(monkeypatch):
    """A fit on single points cannot see what a layer makes of several."""
    setting = make_setting("tanh_cross_entropy")
    model = fitted(setting, Ekfac(), regularization=1e-2, batch_size=1)
    kind = type(model._fitted.problem)
    inside = kind.layer_statistics

    def mixed_up(self, batch, layers, labels):
        found = inside(self, batch, layers, labels)
        return {
            name: LayerStatistics(np.flip(each.inputs, axis=0), each.output_gradients)
            for name, each in found.items()
        }

    monkeypatch.setattr(kind, "layer_statistics", mixed_up)
    with pytest.raises(NotImplementedLayerRepresentationException, match=r"'hidden\.weight'"):
        model.influences(*setting.test(), *setting.train)


def test_small_gradients_do_not_vanish():
    _, _, sight = random_sight(NUMPY_FLOAT32, 6, 1, outputs=40, inputs=50)
    tiny = sight.with_gradients(sight.gradients * np.float32(1e-14))
    weights = damped(40, 50)
    want = scores_of(sight, sight, weights).astype(np.float64) * 1e-28
    NUMPY.close(scores_of(tiny, tiny, weights).astype(np.float64), want, 1e-4)


def test_every_point_has_the_tolerance_whatever_its_length():
    """Points of very different lengths: each column is right, not only the largest."""
    library = NUMPY_FLOAT32
    a, g, _ = random_sight(library, 40, 1, outputs=60, inputs=80)
    lengths = 10.0 ** np.linspace(-6, 6, 40)[:, None, None]
    sight = seen(library, a * lengths, g * lengths)
    weights = damped(60, 80, 1e-3)
    want = np.einsum("mso,msi,oi,nto,nti->mn", g, a, weights, g, a)
    got = scores_of(sight, sight, weights).astype(np.float64)
    got = got / (lengths[:, 0, 0, None] ** 2 * lengths[:, 0, 0] ** 2)
    error = np.linalg.norm(got - want, axis=0) / np.linalg.norm(want, axis=0)
    assert error.max() < 1e-3
