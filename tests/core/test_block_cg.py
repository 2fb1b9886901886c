"""Block conjugate gradient: right-hand sides that depend on each other, and fewer passes."""

import numpy as np
import pytest
from loaders import CountingLoader
from namespaces import NUMPY
from problems import fitted, influence, make_setting, tight

from influence_core import Cg
from influence_core.methods.krylov.block_conjugate_gradient import compress, orthonormal_rows

MODE = "generalized_gauss_newton"
OPTIONS = {"regularization": 1e-2, "second_order_mode": MODE}
BLOCK = {"solve_simultaneously": True}


def right_hand_sides(d, seed=0):
    """Name -> rows: what stalls a block method that does not look."""
    a, b, c, e = np.random.default_rng(seed).standard_normal((4, d))
    scales = np.array([[1e-6], [1e-3], [1.0], [1e6]])
    return {
        "one": np.stack([a]),
        "all duplicates": np.stack([a] * 7),
        "duplicates among others": np.stack([a, b, a, c, b, a]),
        "dependent": np.stack([a, b, a + b, 2 * a - 3 * b, c]),
        "nearly dependent": np.stack([a, a + 1e-9 * b, c]),
        "scales": scales * np.stack([a, b, c, e]),
        "scaled duplicates": scales * np.stack([a] * 4),
        "zeros among others": np.stack([0 * a, a, 0 * a, b]),
        "more than parameters": np.random.default_rng(seed).standard_normal((2 * d, d)),
        "unit vectors": np.eye(d),
    }


@pytest.mark.parametrize("name", right_hand_sides(1))
def test_right_hand_sides_of_any_kind(library, name):
    setting = make_setting("tanh_squared", library)
    model = fitted(setting, tight(library, **BLOCK), batch_size=12, **OPTIONS)
    b = right_hand_sides(model.n_parameters)[name]
    want = np.linalg.solve(setting.oracle().damped(MODE, 1e-2), b.T).T
    got = library.host(model.apply_inverse(library.array(b)))
    errors, sizes = np.linalg.norm(got - want, axis=1), np.linalg.norm(want, axis=1)
    assert np.all(errors <= library.accuracy(1e-2) * sizes), (errors / sizes).max()
    assert model.report.converged.all()


def test_fewer_passes_than_row_by_row():
    setting = make_setting("tanh_squared")
    passes = {}
    for together in (False, True):
        loader = CountingLoader(setting.loader(12))
        method = Cg(rtol=1e-8, atol=0.0, solve_simultaneously=together)
        model = influence(setting, method, **OPTIONS).fit(loader)
        loader.since()
        model.influence_factors(*setting.train)
        passes[together] = loader.since()
    assert 2 * passes[True] < passes[False]


def test_as_many_independent_rows_as_parameters_take_one_step():
    setting = make_setting("least_squares")
    loader = CountingLoader(setting.loader(12))
    method = Cg(rtol=1e-8, atol=0.0, **BLOCK)
    model = influence(setting, method, **OPTIONS).fit(loader)
    loader.since()
    model.apply_inverse(np.random.default_rng(0).standard_normal((40, model.n_parameters)))
    assert model.report.iterations.tolist() == [1] * 40
    assert loader.since() == 2


def test_both_forms_agree(library):
    setting = make_setting("tanh_cross_entropy", library)
    rows, block = (
        fitted(setting, tight(library, solve_simultaneously=together), **OPTIONS)
        for together in (False, True)
    )
    want = library.host(rows.influences(*setting.test(), *setting.train))
    library.close(
        block.influences(*setting.test(), *setting.train), want, 2 * library.accuracy(1e-2)
    )


def test_compressing_keeps_an_independent_basis(library):
    b = right_hand_sides(9)["scaled duplicates"]
    b = np.concatenate([b, np.zeros((1, 9)), np.eye(9)[:1]])
    expand, rows = compress(library.array(b))
    assert rows.shape == (2, 9)
    library.close(rows @ rows.T, np.eye(2), library.tolerance)
    rebuilt = library.host(expand @ rows)
    errors = np.linalg.norm(rebuilt - b, axis=1)
    assert np.all(errors <= library.tolerance * np.linalg.norm(b, axis=1))


def test_orthonormal_rows_are_padded_with_zeros(library):
    a = np.array([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    rows, kept = orthonormal_rows(library.array(a))
    assert library.host(kept).tolist() == [1.0, 0.0, 0.0]
    basis = library.host(rows)
    assert not basis[1:].any()
    np.testing.assert_allclose(np.abs(basis[0]), [5**-0.5, 2 * 5**-0.5, 0.0], rtol=1e-6, atol=1e-7)


def test_compressing_is_exact_to_rounding():
    b = np.random.default_rng(0).standard_normal((6, 20))
    expand, rows = compress(NUMPY.array(b))
    np.testing.assert_allclose(expand @ rows, b, rtol=1e-13, atol=1e-13)
