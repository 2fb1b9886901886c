"""What a score means: predicted changes of the loss against models that are fitted anew."""

import numpy as np
import pytest
from namespaces import NUMPY
from oracle import flatten, gradients, hessians
from problems import (
    CONVEX_KINDS,
    FEW,
    MANY,
    REGULARIZATIONS,
    REPRESENTATIVE,
    N,
    fitted,
    influence,
    make_setting,
    may_be_indefinite,
    tight,
)

from influence_core import (
    ConditioningWarning,
    DataError,
    Direct,
    Influence,
    InverseHarmonicMean,
    NotFittedException,
    NystroemSketch,
)
from influence_core.testing import BACKEND, LeastSquares


@pytest.mark.parametrize("m", [FEW, MANY])
@pytest.mark.parametrize(("kind", "curvature"), REPRESENTATIVE)
def test_without_leverage_it_is_the_score_over_n(library, kind, curvature, m):
    setting = make_setting(kind, library)
    model = fitted(setting, regularization=0.1, second_order_mode=curvature)
    sides = (*setting.test(m), *setting.train)
    want = library.host(model.influences(*sides)) / N
    library.close(model.removal_effects(*sides), want, 1e-6)


def dense_effects(setting, curvature, regularization, m):
    """Scores / N, and the leverages, from the matrix of every point."""
    parameters, loss = setting.parameters, setting.model.loss
    test = gradients(parameters, loss, *setting.host_test(m))
    train = gradients(parameters, loss, *setting.host_train)
    x, y = setting.host_train
    if curvature == "hessian":
        each = hessians(parameters, loss, x, y)
    elif curvature == "gauss_newton":
        each = np.einsum("np,nq->npq", train, train)
    else:
        one = [
            setting.oracle().__class__(parameters, loss, x[j : j + 1], y[j : j + 1])
            for j in range(N)
        ]
        each = np.stack([oracle.curvature(curvature) for oracle in one])
    matrix = each.mean(axis=0) + regularization * np.eye(train.shape[1])
    steps = np.linalg.solve(matrix, train.T).T
    bends = np.einsum("np,npq,nq->n", steps, each, steps)
    leverage = bends / (N * np.sum(steps * train, axis=1))
    return test @ steps.T / N, leverage


@pytest.mark.parametrize("m", [1, FEW, MANY])
@pytest.mark.parametrize("regularization", REGULARIZATIONS)
@pytest.mark.parametrize(("kind", "curvature"), REPRESENTATIVE)
def test_leverage_is_the_step_length_of_the_quadratic(library, kind, curvature, regularization, m):
    setting = make_setting(kind, library)
    effects, leverage = dense_effects(setting, curvature, regularization, m)
    assert 0.01 < leverage.max() < 1
    model = fitted(setting, regularization=regularization, second_order_mode=curvature)
    got = model.removal_effects(*setting.test(m), *setting.train, leverage=True)
    tolerance = 1e-8 if library.dtype == "float64" else 1e-3
    library.close(got, effects / (1 - leverage), tolerance)


@pytest.mark.parametrize("method", [Direct(), tight(), NystroemSketch(40)], ids=repr)
def test_methods_agree(method):
    setting = make_setting("least_squares")
    effects, leverage = dense_effects(setting, "hessian", 1e-2, FEW)
    model = fitted(setting, method, regularization=1e-2)
    got = model.removal_effects(*setting.test(), *setting.train, leverage=True)
    NUMPY.close(got, effects / (1 - leverage), 1e-8)


def ridge(x, y, regularization, kept):
    """Minimise `1/N Σ_{kept} ½‖W x + b - y‖² + λ/2 ‖(W, b)‖²`; the mean stays one over N."""
    a = np.column_stack([x, np.ones(len(x))])[kept]
    matrix = a.T @ a / len(x) + regularization * np.eye(a.shape[1])
    solution = np.linalg.solve(matrix, a.T @ y[kept] / len(x)).T
    return {"weight": solution[:, :-1], "bias": solution[:, -1]}


@pytest.mark.parametrize("regularization", REGULARIZATIONS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_ridge_is_exact(outputs, regularization):
    """With leverage, `⟨∇ℓ_test, Δθ⟩` has the Δθ of the model that is fitted without the point."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((N, 4)), rng.standard_normal((N, outputs))
    test = rng.standard_normal((5, 4)), rng.standard_normal((5, outputs))
    everyone = np.ones(N, bool)
    at = ridge(x, y, regularization, everyone)
    model = Influence(
        LeastSquares(at), None, Direct(), backend=BACKEND, regularization=regularization
    ).fit([(x[:9], y[:9]), (x[9:], y[9:])])
    without = [ridge(x, y, regularization, np.arange(N) != j) for j in range(N)]
    changes = np.stack([flatten(w) - flatten(at) for w in without])
    want = gradients(at, "squared", *test) @ changes.T
    assert model.gradient_norm < 1e-12
    NUMPY.close(model.parameter_changes(x, y, leverage=True), changes, 1e-10)
    NUMPY.close(model.parameter_changes(x, y), model.influence_factors(x, y) / N, 1e-12)
    NUMPY.close(model.removal_effects(*test, x, y, leverage=True), want, 1e-10)
    # and without: right to first order only
    first = NUMPY.host(model.removal_effects(*test, x, y))
    assert np.abs(first - want).max() > 0.01 * np.abs(want).max()
    assert np.corrcoef(first.ravel(), want.ravel())[0, 1] > 0.9


def test_positive_means_that_the_test_loss_rises():
    """A point is its own best friend: without it, its loss is higher."""
    for kind in CONVEX_KINDS:
        setting = make_setting(kind)
        model = fitted(setting, regularization=1e-2)
        own = np.diag(model.removal_effects(*setting.train, *setting.train))
        assert (own > 0).all()
        assert (np.diag(model.removal_effects(*setting.train, *setting.train, True)) > own).all()


def test_blocks_and_weights():
    setting = make_setting("logistic")
    weights = np.arange(N) % 3 + 0.5
    x, y = setting.host_train
    train = (x, y, weights)
    model = influence(setting, regularization=1e-2, block_structure="parameter_wise").fit([train])
    fitted_model = model._fitted
    right = fitted_model.points(train, "x")
    parameters = setting.parameters
    g = gradients(parameters, "cross_entropy", x, y)
    h = hessians(parameters, "cross_entropy", x, y)
    test = gradients(parameters, "cross_entropy", *setting.host_test())
    scores, bends, slopes = 0.0, 0.0, 0.0
    for place in setting.oracle().blocks({n: [n] for n in parameters}).values():
        inside = h[:, place[:, None], place]
        matrix = np.average(inside, axis=0, weights=weights) + 1e-2 * np.eye(place.size)
        step = np.linalg.solve(matrix, g[:, place].T).T
        scores = scores + test[:, place] @ step.T
        bends = bends + np.einsum("np,npq,nq->n", step, inside, step)
        slopes = slopes + np.sum(step * g[:, place], axis=1)
    share = weights / weights.sum()
    leverage = share * bends / slopes
    assert right.batch.weights is not None
    # the weights of the points of a call come with its batch
    from influence_core.removal import corrected_removal_effects, removal_effects

    left = fitted_model.test_points(setting.test(), "x")
    regularization = dict.fromkeys(parameters, 1e-2)
    for effects, want in (
        (removal_effects, scores * share),
        (corrected_removal_effects, scores * share / (1 - leverage)),
    ):
        got, _ = effects(fitted_model, fitted_model.training, left, right, regularization)
        NUMPY.close(got, want, 1e-8)


@may_be_indefinite
def test_a_leverage_of_one_or_more_is_left_uncorrected():
    """An indefinite Hessian: without some points there is no minimum."""
    setting = make_setting("tanh_squared")
    regularization = 1e-3
    effects, leverage = dense_effects(setting, "hessian", regularization, FEW)
    assert (leverage >= 1).any()
    model = fitted(setting, regularization=regularization)
    count = int((leverage >= 1).sum())
    with pytest.warns(ConditioningWarning, match=f"{count} of {N} points have a leverage"):
        got = model.removal_effects(*setting.test(), *setting.train, leverage=True)
    NUMPY.close(got, effects / np.where(leverage < 1, 1 - leverage, 1), 1e-7)


def test_the_harmonic_mean_takes_the_curvature_of_gradients():
    setting = make_setting("tanh_cross_entropy")
    train = gradients(setting.parameters, setting.model.loss, *setting.host_train)
    test = gradients(setting.parameters, setting.model.loss, *setting.host_test())
    each = [np.linalg.inv(np.outer(g, g) + 5.0 * np.eye(g.size)) for g in train]
    steps = train @ np.mean(each, axis=0)
    leverage = np.sum(steps * train, axis=1) / N
    model = fitted(
        setting, InverseHarmonicMean(), regularization=5.0, second_order_mode="gauss_newton"
    )
    got = model.removal_effects(*setting.test(), *setting.train, leverage=True)
    NUMPY.close(got, test @ steps.T / N / (1 - leverage), 1e-8)


def test_wrong_calls():
    setting = make_setting("logistic")
    with pytest.raises(NotFittedException, match="removal_effects"):
        influence(setting).removal_effects(*setting.test(), *setting.train)
    with pytest.raises(NotFittedException, match="parameter_changes"):
        influence(setting).parameter_changes(*setting.train)
    model = fitted(setting, regularization=5.0)
    with pytest.raises(DataError, match="removal_effects"):
        model.removal_effects(*setting.test(), setting.train[0], None)
    with pytest.raises(TypeError):
        model.removal_effects(*setting.test())
