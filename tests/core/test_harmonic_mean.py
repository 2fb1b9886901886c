"""`InverseHarmonicMean` against the mean of dense inverses, point by point."""

import pickle

import numpy as np
import pytest
from namespaces import NUMPY
from oracle import gradients, mixed
from problems import FEW, KINDS, MANY, REGULARIZATIONS, fitted, influence, make_setting

from influence_core import Influence, InverseHarmonicMean, RegularizationError
from influence_core.testing import BACKEND

METHOD = InverseHarmonicMean()


def mean_of_inverses(rows, damping, weights=None):
    """`Σ wᵢ (gᵢgᵢᵀ + D)⁻¹ / Σ wᵢ`, dense."""
    diagonal = np.diag(np.broadcast_to(damping, rows.shape[1:]))
    return np.average(
        [np.linalg.inv(np.outer(g, g) + diagonal) for g in rows], axis=0, weights=weights
    )


def rows_of(setting, pair):
    return gradients(setting.parameters, setting.model.loss, *pair)


@pytest.mark.parametrize("m", [1, FEW, MANY])
@pytest.mark.parametrize("regularization", REGULARIZATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_the_inverses(library, kind, regularization, m):
    setting = make_setting(kind, library)
    inverse = mean_of_inverses(rows_of(setting, setting.host_train), regularization)
    test, train = (rows_of(setting, pair) for pair in (setting.host_test(m), setting.host_train))
    model = fitted(setting, METHOD, regularization=regularization)
    tolerance = 1e-8 if library.dtype == "float64" else 1e-3
    library.close(model.influence_factors(*setting.test(m)), test @ inverse, tolerance)
    got = model.influences(*setting.test(m), *setting.train)
    library.close(got, test @ inverse @ train.T, tolerance)


@pytest.mark.parametrize("batch_size", [1, 7, 23])
def test_batches_do_not_matter(library, batch_size):
    setting = make_setting("tanh_squared", library)
    want = fitted(setting, METHOD, regularization=1e-2, batch_size=5)
    got = fitted(setting, METHOD, regularization=1e-2, batch_size=batch_size)
    sides = (*setting.test(), *setting.train)
    library.close(
        got.influences(*sides), library.host(want.influences(*sides)), library.accuracy(1e-2)
    )


@pytest.mark.parametrize("mode", ["hessian", "gauss_newton", "generalized_gauss_newton"])
def test_the_curvature_does_not_matter(mode):
    setting = make_setting("tanh_cross_entropy")
    options = {"regularization": 1e-2}
    want = fitted(setting, METHOD, **options).influence_factors(*setting.test())
    got = fitted(setting, METHOD, second_order_mode=mode, **options)
    NUMPY.close(got.influence_factors(*setting.test()), want, 0.0)


def test_perturbation():
    setting = make_setting("tanh_squared")
    inverse = mean_of_inverses(rows_of(setting, setting.host_train), 1e-2)
    bent = mixed(setting.parameters, setting.model.loss, *setting.host_train)
    want = np.einsum("mp,nip->mni", rows_of(setting, setting.host_test()) @ inverse, bent)
    model = fitted(setting, METHOD, regularization=1e-2)
    got = model.influences(*setting.test(), *setting.train, mode="perturbation")
    NUMPY.close(got, want, 1e-8)


def test_blocks_have_a_regularization_each():
    setting = make_setting("tanh_squared")
    damping = {"hidden": 1e-3, "output": 1e-1}
    model = fitted(setting, METHOD, block_structure="layer_wise", regularization=damping)
    factors = model.influence_factors_by_block(*setting.test())
    columns = setting.oracle().blocks(
        {name: [p for p in setting.parameters if p.startswith(name)] for name in damping}
    )
    train, test = (rows_of(setting, pair) for pair in (setting.host_train, setting.host_test()))
    for name, place in columns.items():
        inverse = mean_of_inverses(train[:, place], damping[name])
        NUMPY.close(factors[name], test[:, place] @ inverse, 1e-8)
    with pytest.raises(RegularizationError, match=r"missing are \['output'\]"):
        model.with_regularization({"hidden": 0.1})
    again = model.influence_factors_by_block(*setting.test())  # it stays as it was
    for name in damping:
        NUMPY.close(again[name], factors[name], 0.0)


def test_weights_and_a_penalty():
    setting = make_setting("logistic")
    weights = np.arange(23) % 4 + 0.5
    x, y = setting.host_train
    loader = [(x[:9], y[:9], weights[:9]), (x[9:], y[9:], weights[9:])]
    penalty = {"weight": 0.3}
    model = Influence(
        setting.model, None, METHOD, backend=BACKEND, regularization=1e-2, penalty=penalty
    ).fit(loader)
    sizes = {name: a.size for name, a in setting.parameters.items()}
    damping = np.concatenate([np.full(s, penalty.get(n, 0.0)) for n, s in sizes.items()]) + 1e-2
    inverse = mean_of_inverses(rows_of(setting, setting.host_train), damping, weights)
    want = rows_of(setting, setting.host_test()) @ inverse
    NUMPY.close(model.influence_factors(*setting.test()), want, 1e-8)


def test_fit_computes_nothing_of_its_own_and_a_solve_takes_one_pass(monkeypatch):
    setting = make_setting("tanh_squared")
    passes = []

    class Loader(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    model = influence(setting, METHOD, regularization=1e-2).fit(Loader(setting.loader()))
    assert len(passes) == 1
    model.influences(*setting.test(MANY), *setting.train)
    assert len(passes) == 2
    model.influences_over(REGULARIZATIONS, *setting.test(), *setting.train)  # share one
    assert len(passes) == 3


def test_the_report_and_a_pickle():
    setting = make_setting("logistic")
    model = fitted(setting, METHOD, regularization=1e-2)
    want = model.influence_factors(*setting.test())
    assert model.report.converged.all()
    assert not model.report.residual_norms.any()
    NUMPY.close(pickle.loads(pickle.dumps(model)).influence_factors(*setting.test()), want, 0.0)


@pytest.mark.parametrize("regularization", [0, None, {}])
def test_a_positive_regularization_is_needed(regularization):
    setting = make_setting("logistic")
    with pytest.raises(RegularizationError, match=r"above zero|must name every block"):
        influence(setting, METHOD, regularization=regularization).fit(setting.loader())
