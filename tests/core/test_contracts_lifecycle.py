"""What every method promises of its use: one meaning of λ, work done once, reports, quiet."""

import random
import warnings
from dataclasses import fields

import numpy as np
import pytest
from array_api_compat import numpy as compatible
from loaders import CountingLoader
from methods import ALL, CASES, DAMPED, LAYERS, UNDAMPED, named, parameters
from namespaces import NUMPY, TORCH
from problems import FEW, MANY, N, fitted, influence, make_setting

from influence_core import (
    Arnoldi,
    Cg,
    ConditioningWarning,
    ConvergenceWarning,
    Direct,
    Ekfac,
    EkfacPreconditioner,
    InfluenceError,
    JacobiPreconditioner,
    Lissa,
    NystroemPreconditioner,
    RegularizationError,
    SolveReport,
)

cases = pytest.mark.parametrize("case", CASES)
MODE = "generalized_gauss_newton"
PENALTY = {"hidden.weight": 0.3, "hidden.bias": 0.2, "output.weight": 0.1, "output.bias": 0.4}


# One meaning of λ


@cases
def test_there_and_back_is_the_identity(case):
    setting = make_setting("logistic")
    model = case.fitted(setting, regularization=1e-3)
    points = (*setting.test(), *setting.train)
    before = model.influences(*points)
    far = model.with_regularization(1e7).influences(*points)
    want = case.reference(setting).influences(setting.host_test(), setting.host_train, 1e7)
    NUMPY.close(far, want, case.accuracy)
    after = model.with_regularization(1e-3).influences(*points)
    np.testing.assert_array_equal(before, after)
    again = case.fitted(setting, regularization=1e7).with_regularization(1e-3)
    np.testing.assert_array_equal(again.influences(*points), before)


@cases
def test_numbers_of_any_kind(case):
    setting = make_setting("least_squares")
    model = case.fitted(setting, regularization=1.0)
    want = model.influence_factors(*setting.test())
    numbers = [1, np.int64(1), np.float32(1), np.array(1.0), np.array(1)]
    if TORCH.installed:
        numbers.append(TORCH.array(1.0))
    for number in numbers:
        for value in (number, {"": number}):
            got = model.with_regularization(value).influence_factors(*setting.test())
            np.testing.assert_array_equal(got, want)
    for wrong in (-1.0, np.nan, np.inf, True, "1", [1.0]):
        with pytest.raises(RegularizationError):
            model.with_regularization(wrong)
    np.testing.assert_array_equal(model.influence_factors(*setting.test()), want)


def penalized(case, **options):
    """A network whose every curvature is positive definite, so that λ may be zero."""
    setting = make_setting("tanh_squared")
    model = case.influence(
        setting, second_order_mode=MODE, block_structure=LAYERS, penalty=PENALTY, **options
    )
    return setting, model, case.reference(setting, MODE, LAYERS, penalty=PENALTY)


@pytest.mark.parametrize("case", UNDAMPED)
@pytest.mark.parametrize("value", [{"output": 0.5}, {"hidden": None, "output": 0.5}], ids=str)
def test_a_dict_may_name_some_blocks(case, value):
    setting, model, truth = penalized(case, regularization=value)
    model.fit(setting.loader(case.batch_size))
    want = truth.influence_factors(*setting.host_test(), {"output": 0.5})
    NUMPY.close(model.influence_factors(*setting.test()), want, case.accuracy)
    model.with_regularization({"hidden": 0.1})
    want = truth.influence_factors(*setting.host_test(), {"hidden": 0.1})
    NUMPY.close(model.influence_factors(*setting.test()), want, case.accuracy)


@pytest.mark.parametrize("case", DAMPED)
def test_a_dict_must_name_every_block_where_the_inverse_divides_by_it(case):
    wrong = {"output": 0.5}
    words = r"missing are \['hidden'\]. The blocks are \['hidden', 'output'\]"
    with pytest.raises(RegularizationError, match=words):
        penalized(case, regularization=wrong)
    each = {"hidden": 0.1, "output": 0.5}
    setting, model, truth = penalized(case, regularization=each)
    for _ in range(2):  # before `fit` and after it
        for refused in (wrong, {**wrong, "hidden": None}, 0.0, None):
            with pytest.raises(RegularizationError):
                model.with_regularization(refused)
        model.fit(setting.loader())
    want = truth.influence_factors(*setting.host_test(), each)
    NUMPY.close(model.influence_factors(*setting.test()), want, case.accuracy)


@cases
def test_unknown_blocks_are_refused(case):
    _, model, _ = penalized(case, regularization=0.5)
    for wrong in ({"hiden": 0.1, "output": 0.1}, {"hidden": 0.1, "output": 0.1, "": 0.1}):
        with pytest.raises(RegularizationError, match=r"The blocks are \['hidden', 'output'\]"):
            model.with_regularization(wrong)


# Work is done once


@pytest.fixture
def factorizations(monkeypatch):
    """The names of the dense factorisations that were made, in order."""
    seen = []
    names = ("eigh", "eigvalsh", "svd", "qr", "cholesky", "inv", "pinv", "solve")
    for module in (np.linalg, compatible.linalg):
        for name in names:
            real = getattr(module, name)

            def counted(*arguments, real=real, name=name, **options):
                seen.append(name)
                return real(*arguments, **options)

            monkeypatch.setattr(module, name, counted)
    return seen


FACTORED = [case for case in ALL if case.passes == 0]
# A step of block CG makes its rows independent of each other: that is no preparation.
PREPARED = parameters([case for case in ALL if case.name != "block cg"])


@pytest.mark.parametrize("case", PREPARED)
def test_nothing_is_factored_after_fit(case, factorizations):
    setting = make_setting("tanh_squared")
    loader = CountingLoader(setting.loader(case.batch_size))
    options = {"second_order_mode": MODE, "regularization": 1e-1}
    model = case.influence(setting, **options).fit(loader)
    if case in FACTORED:
        assert factorizations
    factorizations.clear()
    for index, regularization in enumerate((1e-1, 0.5, {"": 1})):
        loader.since()
        model.with_regularization(regularization)
        assert loader.since() == 0
        model.influences(*setting.test(FEW + index), *setting.train)
        model.influence_factors(*setting.test())
        model.influences(*setting.test(), *setting.train, mode="perturbation")
        model.apply_inverse(np.ones((2, model.n_parameters)))
        if case.passes is not None:
            assert loader.since() == 4 * case.passes
        model.influences_over([0.2, 0.3], *setting.test(), *setting.train)
        if case.passes is not None:
            assert loader.since() == (1 if case.shares_path else 2) * case.passes
    if isinstance(case.make(NUMPY), Ekfac):  # scores cut the matrix `1/(Λ + λ)` to a low rank
        assert "eigh" not in factorizations
    else:
        assert not factorizations


PASSES_OF_FIT = {
    "direct": 2,  # the first checks the data; here a second one for the matrix
    "cg": 1,
    "jacobi": 2,
    "nystroem cg": 3,  # two products
    "ekfac cg": 3,  # factors, and eigenvalues in their basis
    "arnoldi full rank": 2,
    "nystroem": 3,
    "harmonic mean": 1,
    "kfac": 2,
    "ekfac": 3,
}


@pytest.mark.parametrize("case", named(*PASSES_OF_FIT))
def test_passes_over_the_data_of_fit(case):
    setting = make_setting("tanh_squared")
    loader = CountingLoader(setting.loader())
    case.influence(setting, second_order_mode=MODE, regularization=1e-1).fit(loader)
    assert loader.since() == PASSES_OF_FIT[case.name]


@pytest.mark.parametrize("together", [False, True], ids=["rows", "block"])
@pytest.mark.parametrize(
    "preconditioner",
    [None, JacobiPreconditioner(), NystroemPreconditioner(6), EkfacPreconditioner()],
    ids=["plain", "jacobi", "nystroem", "ekfac"],
)
def test_cg_makes_a_pass_a_step_and_one_for_the_residual(preconditioner, together):
    setting = make_setting("tanh_squared")
    loader = CountingLoader(setting.loader())
    method = Cg(rtol=1e-6, atol=0.0, preconditioner=preconditioner, solve_simultaneously=together)
    model = influence(setting, method, second_order_mode=MODE, regularization=1e-1).fit(loader)
    loader.since()
    for m in (1, FEW, MANY):
        model.influence_factors(*setting.test(m))
        assert loader.since() == model.report.iterations.max() + 1


# Reports


def solves(setting, model):
    """The right-hand sides of every call, after it was made."""
    rows = np.random.default_rng(0).standard_normal((3, model.n_parameters))
    model.influences(*setting.test(), *setting.train)
    yield FEW
    model.influences(*setting.test(MANY), *setting.train)
    yield N
    model.influences(*setting.test(), *setting.train, mode="perturbation")
    yield FEW
    model.influence_factors(*setting.test(7))
    yield 7
    model.apply_inverse(rows)
    yield 3
    model.self_influences(setting.loader(7))
    yield N
    model.influences_over([0.2, 0.3], *setting.test(), *setting.train)
    yield 2 * FEW
    model.removal_effects(*setting.test(), *setting.train)
    yield FEW
    model.removal_effects(*setting.test(), *setting.train, leverage=True)
    yield N


def check_report(case, report, size):
    assert isinstance(report, SolveReport)
    entries = [getattr(report, field.name) for field in fields(report)]
    assert [(len(entry), entry.shape) for entry in entries] == [(size, (size,))] * 4
    assert np.isfinite(report.residual_norms).all()
    assert (report.residual_norms >= 0).all()
    assert report.converged.all()
    assert not report.negative_curvature.any()
    assert (report.iterations > 0).all() if iterates(case) else not report.iterations.any()


def iterates(case):
    return isinstance(case.make(NUMPY), Cg | Lissa)


@cases
@pytest.mark.filterwarnings("ignore:.*have a leverage of one:influence_core.ConditioningWarning")
def test_every_solve_is_reported(case, capsys):
    setting = make_setting("tanh_squared")
    options = {"second_order_mode": MODE, "regularization": 1e-1}
    whole = case.fitted(setting, **options)
    layers = case.fitted(setting, block_structure=LAYERS, **options)
    assert whole.report is layers.report is None
    for size in solves(setting, whole):
        check_report(case, whole.report, size)
    for size in solves(setting, layers):
        assert list(layers.report) == list(LAYERS)
        for report in layers.report.values():
            check_report(case, report, size)
    print(whole.report)
    print(layers.report)
    words = f"{N} of {N} right-hand sides converged, at most "
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(words)[0] for line in lines] == ["", "'hidden': ", "'output': "]
    for line in lines:
        assert " iterations, largest residual norm " in line


@pytest.mark.parametrize("case", parameters([case for case in ALL if case.exact]))
def test_residuals_are_true(case):
    setting = make_setting("tanh_squared")
    model = case.fitted(setting, second_order_mode=MODE, regularization=1e-1)
    rows = 10.0 ** np.arange(4)[:, None] * np.random.default_rng(0).standard_normal((4, 43))
    got = model.apply_inverse(rows)
    residuals = rows - got @ setting.oracle().damped(MODE, 1e-1)
    lengths = np.linalg.norm(rows, axis=1)
    error = np.abs(np.linalg.norm(residuals, axis=1) - model.report.residual_norms)
    assert (error <= 1e-12 * lengths).all()


STARVED = {
    "cg": Cg(maxiter=1, rtol=1e-9, atol=0.0),
    "block cg": Cg(maxiter=1, rtol=1e-9, atol=0.0, solve_simultaneously=True),
    "nystroem cg": Cg(maxiter=1, rtol=1e-9, atol=0.0, preconditioner=NystroemPreconditioner(2)),
    "ekfac cg": Cg(maxiter=1, rtol=1e-9, atol=0.0, preconditioner=EkfacPreconditioner()),
    "lissa": Lissa(maxiter=3),
    "lissa, far too slow": Lissa(maxiter=50, scale=1e5),
}


@pytest.mark.parametrize("method", STARVED.values(), ids=STARVED)
def test_what_has_not_converged_is_said_with_the_numbers(method):
    setting = make_setting("tanh_squared")
    model = fitted(setting, method, second_order_mode=MODE, regularization=1e-2)
    words = rf"{FEW} of {FEW} right-hand sides have not converged after \d+ steps"
    with pytest.warns(ConvergenceWarning, match=words + r".*from \d\.\de.* to \d\.\de"):
        model.influence_factors(*setting.test())
    assert not model.report.converged.any()
    assert (model.report.residual_norms > 0).all()


def test_eigenpairs_that_have_not_converged_are_said_with_the_numbers():
    setting = make_setting("tanh_squared")
    method = Arnoldi(3, krylov_dimension=4, max_iter=1, tol=1e-12)
    words = r"\d of 3 eigenpairs have not converged to tol=1e-12 after 1 restarts"
    with pytest.warns(ConvergenceWarning, match=words + r".*from \d\.\de.* to \d\.\de"):
        fitted(setting, method, second_order_mode=MODE, regularization=1e-2)


# Indefinite curvature


TELLING = (ConditioningWarning, ConvergenceWarning)


def told(act):
    """What `act` returned, and all that it warned of or raised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer, failure = act(), ""
        except InfluenceError as error:
            answer, failure = None, str(error)
    said = [str(w.message) for w in caught if issubclass(w.category, TELLING)]
    return answer, " ".join([*said, failure])


@cases
def test_indefinite_curvature_is_solved_or_said(case):
    """The Hessian of a network that is not trained: who applies an indefinite matrix says so."""
    setting, regularization = make_setting("tanh_squared"), 1e-2
    assert np.linalg.eigvalsh(setting.oracle().damped("hessian", regularization))[0] < -0.01
    truth = case.reference(setting)
    indefinite = bool(np.linalg.eigvalsh(truth.matrix(regularization))[0] < -1e-6)
    assert indefinite or not case.exact
    points = (*setting.test(), *setting.train)
    answer, words = told(
        lambda: case.fitted(setting, regularization=regularization).influences(*points)
    )
    assert ("generalized_gauss_newton" in words) is indefinite
    if not indefinite or isinstance(case.make(NUMPY), Direct | Arnoldi):
        want = truth.influences(setting.host_test(), setting.host_train, regularization)
        NUMPY.close(answer, want, case.accuracy)
    elif answer is not None:
        assert np.isfinite(answer).all()


# Nothing else is touched


@cases
def test_global_random_states_are_left_alone(case):
    setting = make_setting("logistic")

    def states():
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - looked at, not drawn from
        yield (kind, keys.tolist(), *rest)
        yield random.getstate()
        if TORCH.installed:
            import torch

            yield torch.random.get_rng_state().tolist()

    before = list(states())
    model = case.fitted(setting, regularization=1e-1)
    model.influences(*setting.test(), *setting.train)
    assert list(states()) == before


@cases
def test_nothing_that_was_passed_is_written_to(case):
    setting = make_setting("tanh_squared")
    options = {"second_order_mode": MODE, "regularization": 1e-1}
    arrays = [*setting.train, *setting.test(), *setting.model.parameters.values()]
    kept = [a.copy() for a in arrays]
    model = case.fitted(setting, **options)
    factors = model.influence_factors(*setting.test())
    want = factors.copy()
    for mode in ("up", "perturbation"):
        model.influences_from_factors(factors, *setting.train, mode=mode)
    model.apply_inverse(factors)
    np.testing.assert_array_equal(factors, want)
    factors[...] = 7.0  # the answer is the caller's: a later call does not see it
    np.testing.assert_array_equal(model.influence_factors(*setting.test()), want)
    for a, b in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(a, b)
