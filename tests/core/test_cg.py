"""Conjugate gradient, row by row: numbers, passes over the data, reports, negative curvature."""

import logging
import warnings

import numpy as np
import oracle
import pytest
from loaders import CountingLoader
from namespaces import NUMPY_FLOAT32
from problems import (
    DEFINITE,
    FEW,
    MANY,
    REGULARIZATIONS,
    REPRESENTATIVE,
    N,
    fitted,
    influence,
    make_setting,
    tight,
)

from influence_core import (
    Cg,
    ConvergenceWarning,
    DataError,
    Influence,
    NonFiniteError,
    OptionError,
)
from influence_core.methods import cg
from influence_core.testing import BACKEND, LeastSquares

definite = pytest.mark.parametrize(("kind", "curvature"), DEFINITE)
representative = pytest.mark.parametrize(("kind", "curvature"), REPRESENTATIVE)
both_forms = pytest.mark.parametrize("together", [False, True], ids=["rows", "block"])


def random_rows(model, k, seed=0):
    return np.random.default_rng(seed).standard_normal((k, model.n_parameters))


def residuals(b, x, damped):
    return np.linalg.norm(b - x @ damped, axis=-1)


@representative
@both_forms
def test_influences(library, kind, curvature, together):
    setting = make_setting(kind, library)
    method = tight(library, solve_simultaneously=together)
    options = {"regularization": 1e-1}
    model = fitted(setting, method, batch_size=12, second_order_mode=curvature, **options)
    want = setting.oracle().influences(
        *setting.host_test(), *setting.host_train, mode=curvature, **options
    )
    library.close(model.influences(*setting.test(), *setting.train), want, library.accuracy())
    assert model.report.converged.all()


@definite
@both_forms
@pytest.mark.parametrize("regularization", REGULARIZATIONS)
@pytest.mark.parametrize("m", [1, MANY])
def test_regularizations_and_numbers_of_points(kind, curvature, together, regularization, m):
    setting = make_setting(kind)
    method = tight(solve_simultaneously=together)
    options = {"regularization": regularization}
    model = fitted(setting, method, second_order_mode=curvature, **options)
    want = setting.oracle().influences(
        *setting.host_test(m), *setting.host_train, mode=curvature, **options
    )
    got = model.influences(*setting.test(m), *setting.train)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8 * np.abs(want).max())
    assert model.report.converged.shape == (min(m, N),)


@both_forms
def test_more_right_hand_sides_than_parameters(library, together):
    setting = make_setting("least_squares", library)
    method = tight(library, solve_simultaneously=together)
    model = fitted(setting, method, regularization=1e-2)
    k = 2 * model.n_parameters + 1
    b = random_rows(model, k)
    want = np.linalg.solve(setting.oracle().damped("hessian", 1e-2), b.T).T
    library.close(model.apply_inverse(library.array(b)), want, library.accuracy(1e-2))
    assert model.report.converged.tolist() == [True] * k


@both_forms
def test_perturbation(library, together):
    setting = make_setting("tanh_cross_entropy", library)
    options = {"regularization": 1e-1}
    mode = "generalized_gauss_newton"
    method = tight(library, solve_simultaneously=together)
    model = fitted(setting, method, second_order_mode=mode, **options)
    got = model.influences(*setting.test(), *setting.train, mode="perturbation")
    want = setting.oracle().influences(
        *setting.host_test(), *setting.host_train, "perturbation", mode=mode, **options
    )
    library.close(got, want, library.accuracy())


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_precomputing_changes_no_number(library, curvature):
    setting = make_setting("least_squares", library)
    options = {"regularization": 1e-2, "second_order_mode": curvature}
    plain, kept = (
        fitted(setting, tight(library, precompute_grad=precompute), **options)
        for precompute in (False, True)
    )
    want = library.host(plain.influence_factors(*setting.test()))
    library.close(kept.influence_factors(*setting.test()), want, library.tolerance)


# What a solve costs, and when it ends


def counted(setting, method, **options):
    loader = CountingLoader(setting.loader(5))
    model = influence(setting, method, **options).fit(loader)
    loader.since()
    return model, loader


@both_forms
@representative
def test_a_solve_makes_a_pass_a_step_and_one_to_verify(together, kind, curvature):
    setting = make_setting(kind)
    method = Cg(rtol=1e-6, atol=0.0, solve_simultaneously=together)
    model, loader = counted(setting, method, regularization=1e-2, second_order_mode=curvature)
    model.influence_factors(*setting.test())
    steps = int(model.report.iterations.max())
    # the stop flag is not read in every step: up to two steps may be done too many
    assert steps + 1 <= loader.since() <= steps + 3


def test_many_right_hand_sides_share_the_passes():
    setting = make_setting("logistic")
    model, loader = counted(setting, Cg(rtol=1e-6, atol=0.0), regularization=1e-2)
    model.apply_inverse(random_rows(model, 100))
    assert loader.since() <= model.report.iterations.max() + 3


@both_forms
@pytest.mark.parametrize("maxiter", [1, 2, 5])
def test_maxiter_is_honoured_exactly(together, maxiter):
    setting = make_setting("tanh_squared")
    method = tight(maxiter=maxiter, solve_simultaneously=together)
    model, loader = counted(
        setting, method, regularization=1e-2, second_order_mode="generalized_gauss_newton"
    )
    with pytest.warns(ConvergenceWarning):
        model.influence_factors(*setting.test())
    assert model.report.iterations.tolist() == [maxiter] * FEW
    assert loader.since() == maxiter + 1


def test_maxiter_none_means_ten_steps_a_parameter():
    setting = make_setting("least_squares")
    model, loader = counted(setting, Cg(rtol=0.0, atol=0.0), second_order_mode="gauss_newton")
    rows = np.zeros((1, model.n_parameters))
    rows[0, 0] = 1.0
    with pytest.warns(ConvergenceWarning):
        model.apply_inverse(rows)
    assert model.report.iterations.max() <= 10 * model.n_parameters
    assert loader.since() > model.n_parameters


@both_forms
def test_precomputing_reads_the_data_once_a_solve(together):
    setting = make_setting("logistic")
    method = tight(precompute_grad=True, solve_simultaneously=together)
    model, loader = counted(setting, method, regularization=1e-2)
    for _ in range(2):
        model.influence_factors(*setting.test())
        assert loader.since() == 1


def test_tolerances():
    """A row has converged when `‖r‖ ≤ max(rtol ‖b‖, atol)`; then it is worked on no more."""
    setting = make_setting("tanh_squared")
    options = {"regularization": 1e-2, "second_order_mode": "gauss_newton"}
    damped = setting.oracle().damped("gauss_newton", 1e-2)
    steps = []
    for rtol, atol in [(1e-2, 0.0), (1e-8, 0.0), (0.0, 1e-3), (1e-8, 1e-3), (0.0, 1e9)]:
        model = fitted(setting, Cg(rtol=rtol, atol=atol), **options)
        b = random_rows(model, 3)
        x = model.apply_inverse(b)
        tolerances = np.maximum(rtol * np.linalg.norm(b, axis=1), atol)
        assert np.all(residuals(b, x, damped) <= tolerances)
        steps.append(model.report.iterations.sum())
    coarse, fine, absolute, looser, nothing = steps
    assert coarse < absolute == looser < fine
    assert nothing == 0


@both_forms
def test_zero_right_hand_sides_cost_nothing(together):
    setting = make_setting("least_squares")
    model, loader = counted(setting, tight(solve_simultaneously=together), regularization=1e-2)
    got = model.apply_inverse(np.zeros((3, model.n_parameters)))
    assert not got.any()
    assert loader.since() == 0
    assert model.report.converged.all()
    assert model.report.residual_norms.tolist() == [0.0] * 3


@both_forms
def test_a_zero_among_others(library, together):
    setting = make_setting("least_squares", library)
    model = fitted(setting, tight(library, solve_simultaneously=together), regularization=1e-2)
    b = random_rows(model, 3)
    b[1] = 0.0
    got = library.host(model.apply_inverse(library.array(b)))
    assert not got[1].any()
    assert got[[0, 2]].any(axis=1).all()
    assert model.report.converged.all()


@both_forms
def test_no_right_hand_side(together):
    setting = make_setting("least_squares")
    model = fitted(setting, tight(solve_simultaneously=together), regularization=1e-2)
    with pytest.raises(DataError, match="m of one or more"):
        model.apply_inverse(np.zeros((0, model.n_parameters)))


def test_a_row_does_not_depend_on_the_others(library):
    setting = make_setting("logistic", library)
    model = fitted(setting, tight(library), regularization=1e-2)
    b = random_rows(model, 5) * np.array([[1.0], [1e-6], [1e6], [1.0], [1e3]])
    together = library.host(model.apply_inverse(library.array(b)))
    steps = model.report.iterations
    alone = np.concatenate(
        [library.host(model.apply_inverse(library.array(row[None]))) for row in b]
    )
    errors = np.linalg.norm(together - alone, axis=1) / np.linalg.norm(alone, axis=1)
    # not to the last bit: a library may sum a product of one row in another order
    assert errors.max() <= (1e-12 if library.dtype == "float64" else 1e-5)
    assert len(steps) == 5


# The report


@both_forms
@pytest.mark.parametrize("maxiter", [3, None])
def test_report_holds_the_measured_residuals(together, maxiter):
    setting = make_setting("tanh_squared")
    method = Cg(rtol=1e-6, atol=0.0, maxiter=maxiter, solve_simultaneously=together)
    mode = "generalized_gauss_newton"
    model = fitted(setting, method, regularization=1e-2, second_order_mode=mode)
    b = random_rows(model, FEW)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        x = model.apply_inverse(b)
    want = residuals(b, x, setting.oracle().damped(mode, 1e-2))
    report = model.report
    np.testing.assert_allclose(report.residual_norms, want, rtol=1e-6)
    tolerances = 1e-6 * np.linalg.norm(b, axis=1)
    assert report.converged.tolist() == (want <= tolerances).tolist() == [maxiter is None] * FEW
    assert report.iterations.shape == report.negative_curvature.shape == (FEW,)
    assert (report.iterations.dtype, report.residual_norms.dtype) == (np.int64, np.float64)
    assert report.converged.dtype == report.negative_curvature.dtype == np.bool_
    assert f"{FEW if maxiter is None else 0} of {FEW} right-hand sides converged" in str(report)


def test_warning_has_the_numbers():
    setting = make_setting("tanh_squared")
    model = fitted(setting, tight(maxiter=3), regularization=1e-2, second_order_mode="gauss_newton")
    b = np.concatenate([np.zeros((1, model.n_parameters)), random_rows(model, 2)])
    with pytest.warns(ConvergenceWarning) as caught:
        model.apply_inverse(b)
    message, norms = str(caught[0].message), model.report.residual_norms[1:]
    relative = norms / np.linalg.norm(b[1:], axis=1)
    assert len(caught) == 1
    assert "2 of 3 right-hand sides have not converged after 3 steps" in message
    assert f"relative residuals from {relative.min():.1e} to {relative.max():.1e}" in message
    assert f"residual norms up to {norms.max():.1e}" in message
    assert all(remedy in message for remedy in ("`maxiter`", "`rtol`", "`regularization`"))


def test_warning_names_the_block():
    setting = make_setting("tanh_squared")
    model = fitted(
        setting,
        tight(maxiter=1),
        regularization=1e-2,
        second_order_mode="gauss_newton",
        block_structure={"head": ["output.weight"]},
    )
    with pytest.warns(ConvergenceWarning, match="CG of block 'head'"):
        model.influence_factors(*setting.test())


def test_warning_can_be_turned_into_a_log_entry(caplog):
    setting = make_setting("tanh_squared")
    method = tight(maxiter=3, warn_on_max_iteration=False)
    model = fitted(setting, method, regularization=1e-2, second_order_mode="gauss_newton")
    with caplog.at_level(logging.DEBUG, logger="influence_core"):
        model.influence_factors(*setting.test())
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert f"{FEW} of {FEW} right-hand sides have not converged" in record.getMessage()
    assert not model.report.converged.any()


@both_forms
@pytest.mark.parametrize("rtol", [1e-6, 1e-7, 1e-12])
def test_float32_reports_what_it_reaches(together, rtol):
    """The residual of the recurrence falls to zero; the measured one does not, and counts."""
    setting = make_setting("tanh_squared", NUMPY_FLOAT32)
    mode = "generalized_gauss_newton"
    method = Cg(rtol=rtol, atol=0.0, solve_simultaneously=together, warn_on_max_iteration=False)
    model = fitted(setting, method, regularization=1e-3, second_order_mode=mode)
    b = random_rows(model, FEW).astype(np.float32).astype(np.float64)
    x = NUMPY_FLOAT32.host(model.apply_inverse(NUMPY_FLOAT32.array(b))).astype(np.float64)
    damped, scale = setting.oracle().damped(mode, 1e-3), np.linalg.norm(b, axis=1)
    report = model.report
    assert np.all(report.residual_norms <= 1e-4 * scale)
    assert report.converged.tolist() == (report.residual_norms <= rtol * scale).tolist()
    rounding = 1e-6 * np.linalg.norm(damped, 2) * np.linalg.norm(x, axis=1)
    assert np.all(np.abs(report.residual_norms - residuals(b, x, damped)) <= rounding)
    assert rtol > 1e-12 or not report.converged.any()


def test_float32_starts_again_from_what_it_reached(monkeypatch):
    """The recurrence believes in a tolerance that only a second round reaches."""
    rounds, iterate = [], cg.conjugate_gradient
    monkeypatch.setattr(cg, "conjugate_gradient", lambda *a: rounds.append(a) or iterate(*a))
    setting = make_setting("tanh_cross_entropy", NUMPY_FLOAT32)
    mode = "generalized_gauss_newton"
    model = fitted(setting, Cg(rtol=5e-7, atol=0.0), regularization=1e-2, second_order_mode=mode)
    model.influence_factors(*setting.test())
    assert len(rounds) > 1
    assert model.report.converged.all()


# Curvature that is not positive definite


def test_negative_curvature_stops_the_row():
    setting = make_setting("tanh_squared")
    model = fitted(setting, tight(), regularization=1e-2)
    damped = setting.oracle().damped("hessian", 1e-2)
    b = np.linalg.eigh(damped)[1][:, [0, -1]].T  # eigenvalues of either sign
    with pytest.warns(ConvergenceWarning) as caught:
        x = model.apply_inverse(b)
    report, message = model.report, str(caught[0].message)
    assert report.negative_curvature.tolist() == [True, False]
    assert report.converged.tolist() == [False, True]
    assert report.iterations[0] == 0
    assert not x[0].any()
    np.testing.assert_allclose(x[1], np.linalg.solve(damped, b[1]), rtol=1e-8, atol=1e-10)
    assert "1 met negative curvature" in message
    assert "λ=0.01" in message
    assert "larger `regularization`" in message
    assert "GENERALIZED_GAUSS_NEWTON" in message


@both_forms
def test_negative_curvature_keeps_the_last_iterate(library, together):
    setting = make_setting("tanh_squared", library)
    model = fitted(setting, tight(library, solve_simultaneously=together), regularization=1e-2)
    with pytest.warns(ConvergenceWarning, match="negative curvature"):
        factors = library.host(model.influence_factors(*setting.test()))
    report = model.report
    assert report.negative_curvature.any()
    assert not (report.converged & report.negative_curvature).any()
    rows = oracle.gradients(setting.parameters, "squared", *setting.host_test())
    want = residuals(rows, factors.astype(np.float64), setting.oracle().damped("hessian", 1e-2))
    np.testing.assert_allclose(report.residual_norms, want, rtol=1e-3 * library.accuracy() / 1e-8)


@both_forms
def test_a_larger_regularization_is_the_remedy(together):
    setting = make_setting("tanh_squared")
    lowest = np.linalg.eigvalsh(setting.oracle().curvature())[0]
    model = fitted(setting, tight(solve_simultaneously=together), regularization=0.1 - lowest)
    want = setting.oracle().influence_factors(
        *setting.host_test(), regularization=float(0.1 - lowest)
    )
    np.testing.assert_allclose(model.influence_factors(*setting.test()), want, rtol=1e-8, atol=1e-8)


# Numbers that are not finite


@both_forms
def test_gradients_that_overflow_are_refused(together):
    setting = make_setting("least_squares")
    model = fitted(setting, tight(solve_simultaneously=together), regularization=1e-2)
    x, y = setting.test()
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError):
        model.influences(1e200 * x, y, *setting.train)


@both_forms
def test_curvature_that_overflows_stops_the_solve(together):
    setting = make_setting("least_squares")
    x, y = setting.train
    with np.errstate(all="ignore"):
        model = influence(setting, tight(solve_simultaneously=together)).fit([(1e200 * x, y)])
    with np.errstate(all="ignore"), pytest.warns(ConvergenceWarning, match=r"after [01] steps"):
        got = model.apply_inverse(random_rows(model, 2))
    assert not got.any()
    assert not model.report.converged.any()
    assert not model.report.negative_curvature.any()


# Settings


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [-1e-3, np.nan, np.inf, "1e-3", None, True])
def test_tolerances_are_checked(name, value):
    with pytest.raises(OptionError, match=rf"`{name}` must be a finite number.*{value!r}"):
        Cg(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "10"])
def test_maxiter_is_checked(value):
    with pytest.raises(OptionError, match=r"`maxiter` must be an integer of one or more or None"):
        Cg(maxiter=value)


def test_preconditioner_is_checked():
    with pytest.raises(OptionError, match=r"JacobiPreconditioner\(\)"):
        Cg(preconditioner="jacobi")


@pytest.mark.parametrize("progress", [False, True])
def test_progress(capsys, progress):
    setting = make_setting("least_squares")
    model = fitted(setting, tight(progress=progress), regularization=1e-2)
    model.influence_factors(*setting.test())
    shown = capsys.readouterr().err
    assert ("CG" in shown and "steps" in shown) == progress
    assert progress or not shown


def test_settings_of_numpy_are_numbers():
    method = Cg(rtol=np.float32(1e-6), atol=np.float64(0.0), maxiter=np.int64(50))
    model = fitted(make_setting("least_squares"), method, regularization=np.float32(0.5))
    assert model.apply_inverse(random_rows(model, 2)).shape == (2, 15)


def test_least_squares_without_bias():
    setting = make_setting("least_squares")
    net = LeastSquares({"weight": setting.model.parameters["weight"]})
    x, y = setting.train
    loader = [(x[:20], y[:20]), (x[20:], y[20:])]
    model = Influence(net, None, tight(), backend=BACKEND, regularization=1e-2).fit(loader)
    truth = oracle.Oracle(net.parameters, "squared", x, y)
    want = truth.influences(*setting.host_test(), x, y, regularization=1e-2)
    np.testing.assert_allclose(model.influences(*setting.test(), x, y), want, rtol=1e-8)
