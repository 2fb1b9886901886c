"""`Direct` against dense solves, on every library; and what it says of doubtful curvature."""

import warnings

import numpy as np
import pytest
from namespaces import NUMPY, STRICT_FLOAT32
from problems import (
    CURVATURES,
    FEW,
    KINDS,
    MANY,
    REGULARIZATIONS,
    fitted,
    make_setting,
    may_be_indefinite,
)

from influence_core import ConditioningWarning, Direct, Influence, SingularCurvatureError
from influence_core.testing import BACKEND, LeastSquares

pytestmark = may_be_indefinite

kinds = pytest.mark.parametrize("kind", KINDS)
curvatures = pytest.mark.parametrize("curvature", CURVATURES)


def assert_close_at_every_regularization(setting, curvature, call, points, *mode):
    """Fit once, then compare `call(*points, *mode)` with the oracle's for every λ."""
    library, truth = setting.library, setting.oracle()
    model = fitted(setting, Direct(), second_order_mode=curvature)
    arrays = [library.array(a) for a in points]
    for regularization in REGULARIZATIONS:
        got = getattr(model.with_regularization(regularization), call)(*arrays, *mode)
        want = getattr(truth, call)(*points, *mode, mode=curvature, regularization=regularization)
        library.close(got, want, library.accuracy(regularization))


@kinds
@curvatures
def test_factors(library, kind, curvature):
    setting = make_setting(kind, library)
    assert_close_at_every_regularization(
        setting, curvature, "influence_factors", setting.host_test()
    )


@kinds
@curvatures
@pytest.mark.parametrize("m", [1, FEW, MANY])
def test_influences(library, kind, curvature, m):
    setting = make_setting(kind, library)
    points = (*setting.host_test(m), *setting.host_train)
    assert_close_at_every_regularization(setting, curvature, "influences", points)


@kinds
@pytest.mark.parametrize("m", [FEW, MANY])
def test_perturbation(library, kind, m):
    setting = make_setting(kind, library)
    points = (*setting.host_test(m), *setting.host_train)
    assert_close_at_every_regularization(setting, "hessian", "influences", points, "perturbation")


def test_report_measures_the_residuals(library):
    setting = make_setting("tanh_squared", library)
    model = fitted(setting, regularization=0.1, second_order_mode="gauss_newton")
    b = library.array(np.random.default_rng(0).standard_normal((FEW, model.n_parameters)))
    x = library.host(model.apply_inverse(b)).astype(np.float64)
    damped = setting.oracle().damped("gauss_newton", 0.1)
    want = np.linalg.norm(library.host(b) - x @ damped, axis=1)
    report = model.report
    assert report.iterations.tolist() == [0] * FEW
    assert report.converged.tolist() == [True] * FEW
    assert report.negative_curvature.tolist() == [False] * FEW
    rounding = np.finfo(library.dtype).eps * np.linalg.norm(damped, 2) * np.linalg.norm(x, axis=1)
    assert np.all(np.abs(report.residual_norms - want) <= 10 * rounding)
    assert np.all(report.residual_norms > 0)


def test_indefinite_curvature_is_solved_and_told():
    setting = make_setting("tanh_squared")
    lowest = np.linalg.eigvalsh(setting.oracle().curvature())[0]
    assert lowest < -0.1
    model = fitted(setting, regularization=1e-2)
    with pytest.warns(ConditioningWarning, match=r"λ=0.01 is indefinite") as caught:
        got = model.influence_factors(*setting.test())
    message = str(caught[0].message)
    assert f"down to {lowest + 1e-2:.2e}" in message
    assert f"above {-lowest:.2g}" in message
    assert "generalized_gauss_newton" in message
    want = setting.oracle().influence_factors(*setting.host_test(), regularization=1e-2)
    setting.library.close(got, want, 1e-8)


def test_no_warning_where_there_is_no_reason():
    setting = make_setting("tanh_squared")
    model = fitted(setting, regularization=10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.influence_factors(*setting.test())


def test_warning_names_the_block():
    setting = make_setting("tanh_squared")
    model = fitted(setting, block_structure="layer_wise", regularization=1e-4)
    with pytest.warns(ConditioningWarning, match=r"of block 'hidden' with λ=0.0001"):
        model.influence_factors(*setting.test())


@pytest.mark.parametrize(
    ("library", "regularization"), [(NUMPY, 0.0), (STRICT_FLOAT32, 1e-9)], ids=str
)
def test_singular_to_working_precision(library, regularization):
    """The softmax ignores a common shift of its inputs: the Hessian has a null space."""
    setting = make_setting("logistic", library)
    model = fitted(setting, regularization=regularization)
    with pytest.warns(ConditioningWarning, match="singular to working precision.*larger"):
        model.influence_factors(*setting.test())


def zero_curvature(library):
    """Zero inputs and no bias: the Hessian of least squares is exactly zero."""
    model = LeastSquares({"weight": library.array(np.ones((3, 4)))})
    return model, [(library.array(np.zeros((5, 4))), library.array(np.ones((5, 3))))]


def test_exactly_singular_curvature_is_refused(float64_library):
    net, loader = zero_curvature(float64_library)
    model = Influence(net, None, Direct(), backend=BACKEND).fit(loader)
    rows = float64_library.array(np.ones((2, 12)))
    with pytest.raises(SingularCurvatureError, match="12 of its 12 eigenvalues are zero"):
        model.apply_inverse(rows)
    got = model.with_regularization(0.5).apply_inverse(rows)
    float64_library.close(got, 2 * np.ones((2, 12)))
