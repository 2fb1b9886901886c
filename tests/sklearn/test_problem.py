"""Derivatives of every supported estimator, against its predictions and dense algebra."""

import copy
import pickle

import numpy as np
import pytest
from fits import INPUTS, KINDS, ONE_OF_EACH, N, fit
from namespaces import NUMPY, STRICT, STRICT_DEVICE

from influence_core import Direct, Influence, LabelKind
from influence_core.problem import (
    GeneralizedGaussNewton,
    HasLayers,
    HasPenalty,
    HasValues,
    Labels,
    Layer,
    LinearizesHessian,
    Movable,
    PointQuadratics,
    Validates,
)
from influence_sklearn import SklearnProblem

kinds = pytest.mark.parametrize("kind", KINDS)
weighted = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
MULTINOMIAL = [kind for kind in KINDS if kind.startswith("multinomial")]


def problem_of(setting, **options):
    problem = SklearnProblem(setting.estimator, **options)
    return problem, list(problem.parameters), problem.batch(setting.train)


def centred(setting):
    """What a multinomial problem adds to the Hessians: curvature along a shift of all outputs."""
    if not isinstance(setting.classes, np.ndarray) or len(setting.classes) == 2:
        return np.zeros((N, setting.theta.size, setting.theta.size))
    rows = np.stack([setting.jacobian(x).sum(axis=0) / setting.outputs for x in setting.x])
    return np.einsum("np,nq->npq", rows, rows)


@kinds
def test_losses_are_those_of_the_predictions(kind):
    setting = fit(kind)
    problem, _, batch = problem_of(setting)
    NUMPY.close(problem.losses(batch), setting.losses(setting.estimator, setting.x, setting.y))


@kinds
def test_gradients_are_differences_of_the_predictions(kind):
    """Central differences of scikit-learn's own losses."""
    setting = fit(kind)
    problem, names, batch = problem_of(setting)
    theta, coef, columns = setting.theta, np.shape(setting.estimator.coef_), []
    intercept = np.shape(setting.estimator.intercept_)
    size = int(np.prod(coef))

    def losses(at):
        estimator = copy.copy(setting.estimator)
        estimator.coef_ = at[:size].reshape(coef)
        if estimator.fit_intercept:
            estimator.intercept_ = at[size:].reshape(intercept)
        return setting.losses(estimator, setting.x, setting.y)

    for step in 1e-6 * np.eye(theta.size):
        columns.append((losses(theta + step) - losses(theta - step)) / 2e-6)
    NUMPY.close(problem.gradients(batch, names), np.stack(columns, axis=1), 1e-8)
    NUMPY.close(problem.values(names)[None, :], theta[None, :])


@kinds
def test_products_with_gradients(kind):
    setting = fit(kind)
    problem, names, batch = problem_of(setting)
    rows = setting.gradients(setting.x, setting.y)
    v = np.random.default_rng(0).standard_normal((4, setting.theta.size))
    w = np.random.default_rng(1).standard_normal((4, N))
    NUMPY.close(problem.gradients(batch, names), rows)
    NUMPY.close(problem.gradient_products(batch, v, names), v @ rows.T)
    NUMPY.close(problem.gradient_combinations(batch, w, names), w @ rows)


@weighted
@kinds
def test_curvature(kind, weighted):
    setting = fit(kind, weighted=weighted)
    problem, names, batch = problem_of(setting)
    each = setting.hessians(setting.x, setting.y) + centred(setting)
    want = np.average(each, axis=0, weights=setting.point_weights)
    eye = np.eye(len(want))
    NUMPY.close(problem.hessian_product(batch, eye, names), want)
    NUMPY.close(problem.linearize(batch, names)(eye), want)
    NUMPY.close(problem.generalized_gauss_newton_product(batch, eye, names), want)
    total = float(setting.point_weights.sum())
    NUMPY.close(problem.penalty(names, total), setting.penalty / total)
    v = np.random.default_rng(2).standard_normal((N, len(want)))
    quadratics = np.einsum("np,npq,nq->n", v, each, v)
    NUMPY.close(problem.hessian_quadratics(batch, v, names), quadratics)
    NUMPY.close(problem.generalized_gauss_newton_quadratics(batch, v, names), quadratics)


@pytest.mark.parametrize("kind", MULTINOMIAL)
def test_the_curvature_that_is_added_is_orthogonal_to_the_gradients(kind):
    """So that no score sees it, and a Hessian without it would be singular."""
    setting = fit(kind)
    problem, names, batch = problem_of(setting)
    added = centred(setting).mean(axis=0)
    assert np.abs(setting.gradients(setting.x, setting.y) @ added).max() < 1e-13
    matrix = problem.hessian_product(batch, np.eye(len(added)), names)
    assert np.linalg.eigvalsh(matrix - added)[: INPUTS + 1].min() < 1e-13
    assert np.linalg.eigvalsh(matrix).min() > 1e-4


@kinds
def test_parameters_of_a_block(kind):
    setting = fit(kind)
    problem, names, batch = problem_of(setting)
    matrix = problem.hessian_product(batch, np.eye(setting.theta.size), names)
    size = setting.outputs * INPUTS
    for name, place in (("coef", slice(0, size)), ("intercept", slice(size, None))):
        if name in names:
            inner = matrix[place, place]
            NUMPY.close(problem.hessian_product(batch, np.eye(len(inner)), [name]), inner)
            NUMPY.close(problem.penalty([name], 2.0), setting.penalty[place] / 2)


@kinds
def test_mixed_derivatives(kind):
    """Central differences of the gradients in the inputs."""
    setting = fit(kind)
    problem, names, batch = problem_of(setting)
    v = np.random.default_rng(0).standard_normal((2, setting.theta.size))
    want = []
    for step in 1e-6 * np.eye(INPUTS):
        above, below = (
            problem.gradients(problem.batch((setting.x + s, setting.y)), names)
            for s in (step, -step)
        )
        want.append(v @ ((above - below) / 2e-6).T)
    got = problem.mixed_gradient_products(batch, v, names)
    NUMPY.close(got, np.stack(want, axis=-1), 1e-7)


@weighted
@kinds
def test_the_fit_is_a_minimum_of_the_objective(kind, weighted):
    """Loss, penalty and weights together: the gradient is zero where scikit-learn stopped."""
    setting = fit(kind, weighted=weighted)
    influence = Influence(setting.estimator, None, Direct()).fit(setting.batches(17))
    length = np.linalg.norm(setting.gradients(setting.x, setting.y), axis=1).mean()
    assert influence.gradient_norm < 1e-6 * length


@kinds
def test_expected_labels_give_the_fisher_matrix(kind):
    """Of the outputs' distribution: the Hessian, for losses in natural parameters."""
    setting = fit(kind)
    problem, names, batch = problem_of(setting)
    has_intercept = "intercept" in names
    bias = "intercept" if has_intercept else None
    assert problem.layers() == {"": Layer("coef", bias, INPUTS, setting.outputs)}
    statistics = problem.layer_statistics(batch, [""], Labels(LabelKind.EXPECTED, None))[""]
    a, g = statistics.inputs[:, 0, :], statistics.output_gradients[:, :, 0, :]
    rows = np.einsum("cno,ni->cnoi", g, a).reshape(*g.shape[:2], -1)
    rows = np.concatenate([rows, g], axis=2) if has_intercept else rows
    want = setting.hessians(setting.x, setting.y).mean(axis=0)
    NUMPY.close(np.einsum("cnp,cnq->pq", rows, rows) / N, want)


@pytest.mark.parametrize("kind", ["linear, three targets", "binary", "multinomial"])
def test_sampled_labels_have_the_moments_of_the_distribution(kind):
    """Means within five of their own standard errors."""
    setting, draws = fit(kind), 4000
    problem, _, batch = problem_of(setting)
    rng = np.random.default_rng(0)
    labels = Labels(LabelKind.SAMPLED, lambda positions: rng.random((draws, N, positions)))
    g = problem.layer_statistics(batch, [""], labels)[""].output_gradients[:, :, 0, :]
    g = g * np.sqrt(draws)
    products = np.einsum("cno,cnq->cnoq", g, g)
    bends = np.stack([setting.bent(x, y)[1] for x, y in zip(setting.x, setting.y, strict=True)])
    for sample, mean in ((g, 0.0), (products, bends)):
        error = 5 * sample.std(axis=0) / np.sqrt(draws) + 1e-12
        assert (np.abs(sample.mean(axis=0) - mean) <= error).all()
    assert np.abs(products.mean(axis=0)).max() > 0.1


def test_optional_protocols():
    problem = SklearnProblem(fit("ridge").estimator)
    wanted = (
        GeneralizedGaussNewton,
        HasLayers,
        HasPenalty,
        HasValues,
        LinearizesHessian,
        Movable,
        PointQuadratics,
        Validates,
    )
    assert all(isinstance(problem, protocol) for protocol in wanted)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_array_libraries(library, kind):
    """Parameters, and data of the host or of the library, are computed with where `like` is."""
    setting = fit(kind)
    problem, names, _ = problem_of(setting, like=library.array(np.zeros(1)))
    rows = setting.gradients(setting.x, setting.y)
    own = (library.array(setting.x), setting.y)
    if setting.classes is None:
        own = (library.array(setting.x), library.array(setting.y))
    for data in ((setting.x, setting.y), own):
        library.close(problem.gradients(problem.batch(data), names), rows)
    library.close(problem.penalty(names, 3.0), setting.penalty / 3)
    eye, batch = library.array(np.eye(setting.theta.size)), problem.batch(own)
    want = (setting.hessians(setting.x, setting.y) + centred(setting)).mean(axis=0)
    library.close(problem.hessian_product(batch, eye, names), want)


@pytest.mark.parametrize("kind", ["ridge", "binary, classes weighted"])
def test_estimators_of_another_library(kind):
    """As fitted with scikit-learn's array dispatch: the coefficients say where to compute."""
    setting = fit(kind)
    estimator = copy.copy(setting.estimator)
    estimator.coef_ = STRICT_DEVICE.array(np.asarray(estimator.coef_))
    estimator.intercept_ = STRICT_DEVICE.array(np.asarray(estimator.intercept_))
    problem = SklearnProblem(estimator)
    names = list(problem.parameters)
    got = problem.gradients(problem.batch(setting.train), names)
    STRICT_DEVICE.close(got, setting.gradients(setting.x, setting.y))


def test_integer_labels_of_another_library():
    setting = fit("binary")
    estimator = copy.copy(setting.estimator)
    estimator.classes_ = np.array([3, 8])
    places = np.searchsorted(setting.classes, setting.y)
    problem = SklearnProblem(estimator, like=STRICT.array(np.zeros(1)))
    batch = problem.batch((setting.x, STRICT.array(np.array([3, 8])[places])))
    got = problem.gradients(batch, list(problem.parameters))
    STRICT.close(got, setting.gradients(setting.x, setting.y))


def test_moves():
    setting = fit("binary, classes weighted")
    home = SklearnProblem(setting.estimator, like=STRICT.array(np.zeros(1)))
    moved, names = home.to(STRICT_DEVICE.array(0.0).device), list(home.parameters)
    got = moved.gradients(moved.batch(setting.train), names)
    STRICT_DEVICE.close(got, setting.gradients(setting.x, setting.y))
    STRICT_DEVICE.close(moved.penalty(names, 1.0), setting.penalty)
    STRICT_DEVICE.close(moved.batch(setting.train).weights, setting.point_weights)


def test_single_precision_is_computed_in_double():
    setting = fit("ridge")
    estimator = copy.copy(setting.estimator).fit(
        setting.x.astype(np.float32), setting.y.astype(np.float32)
    )
    assert estimator.coef_.dtype == np.float32
    assert SklearnProblem(estimator).reference.dtype == np.float64
    single = SklearnProblem(estimator, like=np.zeros(1, np.float32))
    assert single.reference.dtype == np.float32


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_pickles(kind):
    setting = fit(kind)
    problem, names, batch = problem_of(setting)
    again = pickle.loads(pickle.dumps(problem))
    same = again.batch(setting.train)
    np.testing.assert_array_equal(again.gradients(same, names), problem.gradients(batch, names))
    np.testing.assert_array_equal(again.penalty(names, 2.0), problem.penalty(names, 2.0))


def test_parameters_are_copies():
    setting = fit("ridge")
    problem, names, batch = problem_of(setting)
    before = problem.gradients(batch, names)
    setting.estimator.coef_ += 1.0
    setting.estimator.set_params(alpha=100.0)
    np.testing.assert_array_equal(problem.gradients(batch, names), before)
    assert problem.penalty(["coef"], 1.0)[0] == 6.0


def test_memory_is_bounded():
    setting = fit("multinomial")
    problem, names, batch = problem_of(setting)
    small = SklearnProblem(setting.estimator, max_memory=1)
    eye = np.eye(setting.theta.size)
    want = problem.hessian_product(batch, eye, names)
    NUMPY.close(small.hessian_product(batch, eye, names), want)
    changes = 0.1 * eye
    NUMPY.close(small.loss_changes(batch, changes), problem.loss_changes(batch, changes))
