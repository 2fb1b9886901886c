"""Preconditioners of CG: the same answers in fewer steps, prepared once by `fit`."""

import numpy as np
import pytest
from loaders import CountingLoader
from problems import CURVATURES, INPUTS, OUTPUTS, REPRESENTATIVE, N, influence, make_setting, tight

from influence_core import (
    Cg,
    ConditioningWarning,
    Influence,
    JacobiPreconditioner,
    NystroemPreconditioner,
    OptionError,
)
from influence_core.testing import BACKEND, LeastSquares

PRECONDITIONERS = [
    JacobiPreconditioner(),
    JacobiPreconditioner(num_samples_estimator=20),
    NystroemPreconditioner(rank=5),
    NystroemPreconditioner(rank=100),
]
each = pytest.mark.parametrize("preconditioner", PRECONDITIONERS, ids=str)
both_forms = pytest.mark.parametrize("together", [False, True], ids=["rows", "block"])


@each
@both_forms
@pytest.mark.parametrize(("kind", "curvature"), REPRESENTATIVE)
def test_answers_stay_right(kind, curvature, preconditioner, together):
    setting = make_setting(kind)
    method = tight(preconditioner=preconditioner, solve_simultaneously=together)
    options = {"regularization": 1e-2}
    model = influence(setting, method, second_order_mode=curvature, **options)
    got = model.fit(setting.loader()).influence_factors(*setting.test())
    want = setting.oracle().influence_factors(*setting.host_test(), mode=curvature, **options)
    setting.library.close(got, want, 1e-8)
    assert model.report.converged.all()


@each
def test_every_library(library, preconditioner):
    setting = make_setting("least_squares", library)
    method = tight(library, preconditioner=preconditioner)
    options = {"regularization": 1e-2}
    model = influence(setting, method, second_order_mode="gauss_newton", **options)
    got = model.fit(setting.loader(12)).influence_factors(*setting.test())
    want = setting.oracle().influence_factors(*setting.host_test(), mode="gauss_newton", **options)
    library.close(got, want, library.accuracy())


def badly_scaled():
    """Least squares with orthogonal inputs of scales from 0.03 to 30: the diagonal says all."""
    rng = np.random.default_rng(0)
    scales = 10.0 ** np.linspace(-1.5, 1.5, 12)
    x = np.linalg.qr(rng.standard_normal((40, 12)))[0] * scales
    return LeastSquares({"weight": rng.standard_normal((1, 12))}), x, rng.standard_normal((40, 1))


def low_rank_plus_small():
    """Least squares whose Hessian has five large eigenvalues, far apart, above a small rest."""
    rng = np.random.default_rng(0)
    scales = np.array([1e3, 3e2, 1e2, 30.0, 10.0, *np.linspace(0.02, 0.2, 35)])
    x = np.linalg.qr(rng.standard_normal((60, 40)))[0] * scales
    x = x @ np.linalg.qr(rng.standard_normal((40, 40)))[0]
    return LeastSquares({"weight": rng.standard_normal((1, 40))}), x, rng.standard_normal((60, 1))


def steps(case, preconditioner, regularization):
    net, x, y = case
    method = Cg(rtol=1e-6, atol=0.0, preconditioner=preconditioner)
    model = Influence(net, None, method, backend=BACKEND, regularization=regularization)
    model.fit([(x[:30], y[:30]), (x[30:], y[30:])])
    model.apply_inverse(np.random.default_rng(1).standard_normal((3, x.shape[1])))
    assert model.report.converged.all()
    return int(model.report.iterations.max())


@pytest.mark.parametrize("samples", [1, 10])
def test_jacobi_saves_steps_where_scales_differ(samples):
    case = badly_scaled()
    plain = steps(case, None, 1e-6)
    assert plain > 12
    assert steps(case, JacobiPreconditioner(samples), 1e-6) <= 3 < plain / 3


def test_nystroem_saves_steps_where_few_eigenvalues_stand_out():
    case = low_rank_plus_small()
    counts = [steps(case, p, 1e-3) for p in (None, *map(NystroemPreconditioner, (4, 10, 40)))]
    assert counts[0] > counts[1] > counts[2] >= counts[3]
    assert counts[2] < counts[0] / 2
    assert counts[3] <= 2


@pytest.mark.parametrize(
    ("preconditioner", "passes"),
    list(zip([None, *PRECONDITIONERS], [0, 1, 1, 2, 2], strict=True)),
    ids=str,
)
@pytest.mark.parametrize("curvature", CURVATURES)
def test_prepared_once(preconditioner, passes, curvature):
    setting = make_setting("least_squares")
    loader = CountingLoader(setting.loader())
    method = tight(preconditioner=preconditioner)
    model = influence(setting, method, regularization=1e-2, second_order_mode=curvature)
    model.fit(loader)
    assert loader.since() == 1 + passes  # one to check the data
    for regularization in (1e-2, 1e-1):  # a new λ prepares nothing
        model.with_regularization(regularization).influence_factors(*setting.test())
        assert loader.since() <= model.report.iterations.max() + 3


def test_one_instance_serves_every_block():
    setting = make_setting("tanh_squared")
    options = {
        "regularization": 1e-2,
        "second_order_mode": "generalized_gauss_newton",
        "block_structure": "parameter_wise",
    }
    truth = setting.oracle()
    for preconditioner in PRECONDITIONERS:
        model = influence(setting, tight(preconditioner=preconditioner), **options)
        got = model.fit(setting.loader()).influence_factors(*setting.test())
        want = truth.influence_factors(
            *setting.host_test(),
            mode="generalized_gauss_newton",
            regularization=1e-2,
            blocks={name: [name] for name in setting.parameters},
        )
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


def test_jacobi_on_indefinite_curvature_stays_positive():
    setting = make_setting("tanh_squared")
    regularization = 1.0
    assert np.linalg.eigvalsh(setting.oracle().damped("hessian", regularization))[0] > 0
    method = tight(preconditioner=JacobiPreconditioner())
    model = influence(setting, method, regularization=regularization).fit(setting.loader())
    want = setting.oracle().influence_factors(*setting.host_test(), regularization=regularization)
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)


def test_nystroem_on_indefinite_curvature_says_so():
    setting = make_setting("tanh_squared")
    method = tight(preconditioner=NystroemPreconditioner(rank=20))
    with pytest.warns(ConditioningWarning, match=r"rank=20\).*left out.*generalized_gauss_newton"):
        model = influence(setting, method, regularization=1.0).fit(setting.loader())
    want = setting.oracle().influence_factors(*setting.host_test(), regularization=1.0)
    setting.library.close(model.influence_factors(*setting.test()), want, 1e-8)


@pytest.mark.parametrize("preconditioner", [JacobiPreconditioner(), NystroemPreconditioner(3)])
def test_zero_curvature(preconditioner):
    """Zero inputs and no bias: `C = 0`, and only λ is left."""
    net = LeastSquares({"weight": np.ones((OUTPUTS, INPUTS))})
    loader = [(np.zeros((N, INPUTS)), np.ones((N, OUTPUTS)))]
    method = tight(preconditioner=preconditioner)
    model = Influence(net, None, method, backend=BACKEND, regularization=0.5).fit(loader)
    rows = np.ones((1, OUTPUTS * INPUTS))
    np.testing.assert_allclose(model.apply_inverse(rows), 2 * rows)


def test_seed_decides():
    """A new seed is another sketch: as good, but not the same to the last digit."""
    setting = make_setting("tanh_squared")
    options = {"regularization": 1e-2, "second_order_mode": "generalized_gauss_newton"}

    def factors(seed):
        method = Cg(rtol=1e-4, preconditioner=NystroemPreconditioner(8), seed=seed)
        model = influence(setting, method, **options).fit(setting.loader())
        return model.influence_factors(*setting.test())

    np.testing.assert_array_equal(factors(3), factors(3))
    assert np.any(factors(3) != factors(4))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_sizes_are_checked(value):
    with pytest.raises(OptionError, match="`num_samples_estimator` must be an integer of one"):
        JacobiPreconditioner(num_samples_estimator=value)
    with pytest.raises(OptionError, match="`rank` must be an integer of one"):
        NystroemPreconditioner(rank=value)
