"""Scores of fitted estimators by every method, in one call and by `Influence`."""

import pickle

import numpy as np
import pytest
from fits import INPUTS, KINDS, NAMES, ONE_OF_EACH, M, N, fit, logistic
from namespaces import NUMPY, TORCH
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler

from influence_core import (
    Arnoldi,
    CapabilityError,
    Cg,
    ConditioningWarning,
    DataError,
    Direct,
    Ekfac,
    Influence,
    NystroemSketch,
)
from influence_sklearn import Weighted, influences

kinds = pytest.mark.parametrize("kind", KINDS)
weighted = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])

METHODS = {
    "Direct": Direct(),
    "Cg": Cg(rtol=1e-12, atol=0.0),
    "Cg, all together": Cg(rtol=1e-12, atol=0.0, solve_simultaneously=True),
    "Arnoldi": Arnoldi(rank=50),
    "NystroemSketch": NystroemSketch(50),
}


@weighted
@kinds
def test_dense_references(kind, weighted):
    """The penalty of the estimator belongs to the objective: λ is 0."""
    setting = fit(kind, weighted=weighted)
    weights = setting.point_weights
    got = influences(
        setting.estimator, setting.x, setting.y, *setting.test, sample_weight=setting.weights
    )
    assert isinstance(got, np.ndarray)
    NUMPY.close(got, setting.influences() * weights, 1e-8)


@pytest.mark.parametrize("regularization", [1e-3, 1e-1])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_methods(kind, method, regularization):
    setting = fit(kind, weighted=True)
    got = influences(
        setting.estimator,
        setting.x,
        setting.y,
        *setting.test,
        sample_weight=setting.weights,
        method=METHODS[method],
        regularization=regularization,
    )
    want = setting.influences(regularization) * setting.weights
    NUMPY.close(got, want, 1e-8)


@pytest.mark.parametrize("batch_size", [1, 7, N])
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_answers_do_not_depend_on_the_batches(kind, batch_size):
    setting = fit(kind, weighted=True)
    influence = Influence(setting.estimator, None, Direct(), regularization=1e-2)
    influence.fit(setting.batches(batch_size))
    got = influence.influences(*setting.test, setting.x, setting.y)
    NUMPY.close(got, setting.influences(1e-2), 1e-8)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_libraries(library, kind):
    setting, regularization = fit(kind), 1e-2
    influence = Influence(
        setting.estimator,
        None,
        Direct(),
        regularization=regularization,
        like=library.array(np.zeros(1)),
    ).fit(setting.batches(17))
    got = influence.influences(*setting.test, setting.x, setting.y)
    library.close(got, setting.influences(regularization), library.accuracy(regularization))


def test_the_solver_may_run_in_another_library():
    pytest.importorskip("torch")
    setting = fit("multinomial")
    influence = Influence(setting.estimator, None, Direct(), array_backend="torch")
    got = influence.fit(setting.batches(17)).influences(*setting.test, setting.x, setting.y)
    NUMPY.close(got, setting.influences(), 1e-8)
    on_torch = Influence(setting.estimator, None, Direct(), like=TORCH.array(np.zeros(1)))
    on_torch.fit(setting.batches(17))
    got = on_torch.influences(TORCH.array(setting.x_test), setting.y_test, setting.x, setting.y)
    TORCH.close(got, setting.influences(), 1e-8)


@pytest.mark.parametrize("kind", ["linear, three targets", "binary", "multinomial"])
def test_blocks(kind):
    """Each with its own part of the matrix; `influences` is their sum."""
    setting = fit(kind)
    influence = Influence(
        setting.estimator, None, Direct(), block_structure="parameter_wise", regularization=1e-3
    ).fit(setting.batches(17))
    matrix = setting.curvature() + 1e-3 * np.eye(setting.theta.size)
    left, right = setting.gradients(*setting.test), setting.gradients(setting.x, setting.y)
    size = setting.outputs * INPUTS
    got = influence.influences_by_block(*setting.test, setting.x, setting.y)
    for name, part in (("coef", slice(0, size)), ("intercept", slice(size, None))):
        inverse = np.linalg.inv(matrix[part, part])
        NUMPY.close(got[name], left[:, part] @ inverse @ right[:, part].T, 1e-8)


@pytest.mark.parametrize("kind", ["linear", "linear, three targets"])
def test_kronecker_factors_are_exact_for_least_squares(kind):
    setting = fit(kind)
    for method in (Ekfac(), Ekfac(update_diagonal=True)):
        got = influences(
            setting.estimator,
            setting.x,
            setting.y,
            *setting.test,
            method=method,
            regularization=1e-2,
        )
        NUMPY.close(got, setting.influences(1e-2), 1e-8)


def test_no_part_of_a_penalty_acts_where_C_is_infinite():
    """Where scikit-learn minimises the loss alone, `l1_ratio` says nothing."""
    setting = fit("binary without penalty")
    estimator = clone(setting.estimator).set_params(l1_ratio=1.0).fit(setting.x, setting.y)
    got = influences(estimator, setting.x, setting.y, *setting.test)
    NUMPY.close(got, setting.influences(), 1e-8)


def test_without_test_points_the_training_points_stand_on_both_sides():
    setting = fit("binary")
    got = influences(setting.estimator, setting.x, setting.y)
    want = influences(setting.estimator, setting.x, setting.y, setting.x, setting.y)
    NUMPY.close(got, want)
    with pytest.raises(DataError, match="both `X_test` and `y_test`"):
        influences(setting.estimator, setting.x, setting.y, setting.x)


@weighted
@pytest.mark.parametrize("kind", ["ridge, three targets", "binary", "multinomial"])
def test_perturbation_predicts_the_change_of_the_loss(kind, weighted):
    """A training input moves, the estimator is fitted anew: central differences."""
    setting = fit(kind, weighted=weighted)
    got = influences(
        setting.estimator,
        setting.x,
        setting.y,
        *setting.test,
        sample_weight=setting.weights,
        mode="perturbation",
    )
    assert got.shape == (M, N, INPUTS)
    for j, axis in ((3, 0), (20, 2)):
        losses = []
        for step in (1e-4, -1e-4):
            x = setting.x.copy()
            x[j, axis] += step
            again = clone(setting.estimator).fit(x, setting.y, sample_weight=setting.weights)
            losses.append(setting.losses(again, *setting.test))
        want = -(losses[0] - losses[1]) / 2e-4 * setting.point_weights.sum()
        NUMPY.close(got[:, j, axis], want, 1e-5)


def test_weights_count_points():
    """A weight of two is the point twice, also in the score; a weight of zero is none."""
    setting = fit("multinomial")
    weights = np.arange(N) % 3 * 1.0
    copies = np.repeat(np.arange(N), np.arange(N) % 3)
    estimator = clone(setting.estimator).fit(setting.x, setting.y, sample_weight=weights)
    got = influences(estimator, setting.x, setting.y, *setting.test, sample_weight=weights)
    each = influences(estimator, setting.x[copies], setting.y[copies], *setting.test)
    want = np.zeros_like(got)
    np.add.at(want.T, copies, each.T)
    NUMPY.close(got, want, 1e-8)


def test_weights_reach_the_calls_that_take_x_and_y():
    setting = fit("ridge", weighted=True)
    influence = Influence(setting.estimator, None, Direct()).fit(setting.batches(17))
    training = setting.x, Weighted(setting.y, setting.weights)
    again = Influence(setting.estimator, None, Direct()).fit([training])
    share = setting.weights / setting.weights.sum()
    want = setting.influences() * share
    for model in (influence, again):
        NUMPY.close(model.removal_effects(*setting.test, *training), want, 1e-8)
    plain = influence.removal_effects(*setting.test, setting.x, setting.y)
    NUMPY.close(plain, setting.influences() / setting.weights.sum(), 1e-8)


@weighted
@pytest.mark.parametrize(
    ("solver", "classes"), [("newton-cholesky", 2), ("newton-cholesky", 3), ("liblinear", 2)]
)
def test_balanced_classes(solver, classes, weighted):
    """The same as weights written out."""
    x, y = make_classification(
        80,
        4,
        n_redundant=0,
        n_classes=classes,
        weights=[0.7, 0.2][: classes - 1],
        n_clusters_per_class=1,
        random_state=0,
    )
    weights = np.random.default_rng(0).uniform(0.3, 2.0, 80) if weighted else None
    count = np.bincount(y, weights)
    by_class = dict(enumerate(count.sum() / (classes * count)))
    balanced, given = (
        logistic(class_weight=each, solver=solver).fit(x, NAMES[y] if named else y, weights)
        for each, named in (("balanced", True), (by_class, False))
    )
    np.testing.assert_allclose(balanced.coef_, given.coef_, atol=1e-6)
    got = influences(balanced, x, NAMES[y], x[:5], NAMES[y[:5]], sample_weight=weights)
    want = influences(given, x, y, x[:5], y[:5], sample_weight=weights)
    NUMPY.close(got, want, 1e-5)
    option = {str(NAMES[label]): weight for label, weight in by_class.items()}
    influence = Influence(balanced, None, Direct(), class_weight=option)
    assert influence.fit([(x, Weighted(NAMES[y], weights))]).gradient_norm < 1e-6


def test_pipelines_are_their_last_step_on_transformed_data():
    setting = fit("binary")
    pipeline = make_pipeline(
        StandardScaler(),
        "passthrough",
        make_pipeline(
            PolynomialFeatures(2, include_bias=False), logistic(solver="newton-cholesky")
        ),
    ).fit(setting.x, setting.y)
    inner = pipeline[-1]
    x, x_test = (
        inner[:-1].transform(pipeline[:1].transform(a)) for a in (setting.x, setting.x_test)
    )
    want = influences(inner[-1], x, setting.y, x_test, setting.y_test)
    NUMPY.close(influences(pipeline, setting.x, setting.y, *setting.test), want)
    influence = Influence(pipeline, None, Direct()).fit(setting.batches(17))
    NUMPY.close(influence.influences(*setting.test, setting.x, setting.y), want, 1e-8)
    # what happens to the pipeline later does not matter
    pipeline.fit(5 * setting.x, setting.y)
    NUMPY.close(influence.influences(*setting.test, setting.x, setting.y), want, 1e-8)
    with pytest.raises(CapabilityError, match=r"perturbation.*standardscaler.*polynomialfeatures"):
        influences(pipeline, setting.x, setting.y, *setting.test, mode="perturbation")


def test_sparse_matrices_are_made_dense():
    rng = np.random.default_rng(0)
    words, y = rng.integers(0, 4, (50, 2)).astype(str), rng.standard_normal(50)
    ridge = Ridge(solver="sparse_cg", tol=1e-12)
    pipeline = make_pipeline(OneHotEncoder(), ridge).fit(words, y)
    sparse = pipeline[0].transform(words)
    assert hasattr(sparse, "toarray")
    want = influences(Ridge().fit(sparse.toarray(), y), sparse.toarray(), y)
    NUMPY.close(influences(pipeline, words, y), want, 1e-8)
    NUMPY.close(influences(pipeline[-1], sparse, y), want, 1e-8)


def test_integers_lists_and_columns_are_taken_as_scikit_learn_takes_them():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (40, 3)), rng.integers(0, 9, 40)
    ridge = Ridge().fit(x, y)
    want = influences(ridge, x.astype(float), y.astype(float))
    for data in ((x, y), (x.tolist(), y.tolist()), (x.astype(np.float32), y[:, None])):
        NUMPY.close(influences(ridge, *data), want)
    booleans = x > 2
    classifier = LogisticRegression().fit(booleans, y > 4)
    NUMPY.close(
        influences(classifier, booleans, y > 4), influences(classifier, x > 2.0, (y > 4).tolist())
    )


def test_fitted_influences_pickle():
    setting = fit("multinomial")
    influence = Influence(setting.estimator, None, Direct()).fit(setting.batches(17))
    again = pickle.loads(pickle.dumps(influence))
    sides = (*setting.test, setting.x, setting.y)
    np.testing.assert_array_equal(again.influences(*sides), influence.influences(*sides))


def test_a_singular_least_squares_problem_is_told():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 9)), rng.standard_normal(5)
    estimator = LinearRegression().fit(x, y)
    with pytest.warns(ConditioningWarning, match="singular to working precision"):
        influences(estimator, x, y)
    assert influences(estimator, x, y, regularization=0.1).shape == (5, 5)
