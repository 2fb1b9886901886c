"""CG where floating point is at its end: tiny and huge right-hand sides, bad conditioning."""

import numpy as np
import pytest
from namespaces import NUMPY, NUMPY_FLOAT32

from influence_core import Cg, Direct, Influence
from influence_core.testing import BACKEND, LeastSquares

both_forms = pytest.mark.parametrize("together", [False, True], ids=["rows", "block"])


def least_squares(eigenvalues, library, method, regularization, *, seed=0):
    """Fit a problem whose Hessian, without a bias, has these eigenvalues; return it too, dense."""
    d = len(eigenvalues)
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    points = np.linalg.qr(rng.standard_normal((3 * d, d)))[0] * np.sqrt(3 * d)
    x = library.array((points * np.sqrt(eigenvalues)) @ turn.T)
    model = LeastSquares({"weight": library.array(np.zeros((1, d)))})
    fitted = Influence(model, None, method, regularization=regularization, backend=BACKEND)
    fitted.fit([(x, library.array(np.zeros((3 * d, 1))))])
    exact = np.asarray(library.host(x), dtype=np.float64)
    return fitted, exact.T @ exact / (3 * d) + regularization * np.eye(d), rng


def relative_errors(got, b, damped):
    want = np.linalg.solve(damped, np.asarray(b, np.float64).T).T
    return np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)


@both_forms
@pytest.mark.parametrize(
    ("library", "exponents"), [(NUMPY, (-200, -20, 0, 20, 200)), (NUMPY_FLOAT32, (-30, -18, 0, 30))]
)
def test_the_length_of_a_right_hand_side_does_not_matter(library, exponents, together):
    method = Cg(rtol=1e-5, atol=0.0, solve_simultaneously=together)
    model, damped, rng = least_squares(np.logspace(-2, 1, 12), library, method, 1e-2)
    scales = 10.0 ** np.array(exponents)[:, None]
    b = library.array(rng.standard_normal((len(exponents), 12)) * scales)
    got = np.asarray(library.host(model.apply_inverse(b)), np.float64)
    assert relative_errors(got / scales, library.host(b) / scales, damped).max() < 1e-4
    report = model.report
    assert report.converged.all()
    assert not report.negative_curvature.any()
    lengths = np.linalg.norm(np.asarray(library.host(b), np.float64) / scales, axis=1)
    assert (report.residual_norms / scales[:, 0] <= 1e-5 * lengths).all()


def test_an_absolute_tolerance_is_absolute():
    model, _, rng = least_squares(np.logspace(-2, 1, 12), NUMPY, Cg(rtol=0.0, atol=1e-3), 1e-2)
    b = rng.standard_normal((3, 12)) * np.array([[1e-6], [1.0], [1e3]])
    model.apply_inverse(b)
    assert model.report.iterations[0] == 0
    assert (model.report.iterations[1:] > 0).all()
    assert (model.report.residual_norms <= 1e-3).all()


@pytest.mark.parametrize(("top", "regularization"), [(1e2, 1e-3), (1.0, 1e-5), (1e4, 1e-1)])
def test_block_cg_in_float32_starts_again_where_its_recurrence_stalls(top, regularization):
    method = Cg(rtol=1e-3, atol=0.0, solve_simultaneously=True)
    eigenvalues = np.logspace(np.log10(top), -8, 120)
    model, damped, rng = least_squares(eigenvalues, NUMPY_FLOAT32, method, regularization)
    b = NUMPY_FLOAT32.array(rng.standard_normal((30, 120)))
    got = NUMPY_FLOAT32.host(model.apply_inverse(b))
    assert model.report.converged.mean() >= 0.9
    assert model.report.iterations.max() < 400  # of 1,200 that are allowed
    assert np.median(relative_errors(got, b, damped)) < 2e-3


@pytest.mark.filterwarnings("ignore::influence_core.ConvergenceWarning")
@both_forms
def test_bad_conditioning_is_no_negative_curvature(together):
    method = Cg(rtol=1e-3, atol=0.0, solve_simultaneously=together, maxiter=300)
    eigenvalues = np.logspace(4, -8, 60)
    model, _, rng = least_squares(eigenvalues, NUMPY_FLOAT32, method, 1e-3)
    b = NUMPY_FLOAT32.array(rng.standard_normal((100, 60)))
    assert NUMPY_FLOAT32.host(model.apply_inverse(b)).any()
    assert not model.report.negative_curvature.any()
    assert (model.report.iterations > 0).all()


@pytest.mark.filterwarnings("ignore::influence_core.ConditioningWarning")
def test_direct_says_in_its_report_what_it_warns_of():
    model, _, rng = least_squares(np.array([1.0, 1e-20, 2.0]), NUMPY, Direct(), 0.0)
    model.apply_inverse(rng.standard_normal((2, 3)))
    assert not model.report.converged.any()
