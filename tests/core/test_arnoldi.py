"""`Arnoldi` against the truncated formula from dense eigenpairs, on every library."""

import pickle
import re

import numpy as np
import oracle
import pytest
from array_api_strict import Device
from loaders import CountingLoader
from namespaces import NUMPY_FLOAT32, STRICT, STRICT_DEVICE, TORCH
from problems import (
    CURVATURES,
    FEW,
    KINDS,
    MANY,
    REGULARIZATIONS,
    fitted,
    influence,
    make_setting,
    may_be_indefinite,
)

from influence_core import (
    ConvergenceWarning,
    Direct,
    Influence,
    NonFiniteError,
    OptionError,
    RegularizationError,
    SingularCurvatureError,
)
from influence_core.methods.arnoldi import Arnoldi
from influence_core.testing import BACKEND, LeastSquares

pytestmark = may_be_indefinite

kinds = pytest.mark.parametrize("kind", KINDS)
curvatures = pytest.mark.parametrize("curvature", CURVATURES)
both_forms = pytest.mark.parametrize("woodbury", [False, True], ids=["dropped", "woodbury"])

LAYERS = {"hidden": ["hidden.weight", "hidden.bias"], "output": ["output.weight", "output.bias"]}


def gap(values):
    """The number of eigenvalues, two to six, before the widest relative gap in absolute value."""
    sizes = np.sort(np.abs(values))[::-1]
    ranks = np.arange(2, 7)
    return int(ranks[np.argmax(sizes[ranks - 1] / sizes[ranks])])


def inverse(matrix, rank, regularization, woodbury):
    """`V (Λ + λ)⁻¹ Vᵀ`, or the inverse of `V Λ Vᵀ + λI`."""
    values, vectors = np.linalg.eigh(matrix)
    largest = np.argsort(-np.abs(values))[:rank]
    values, vectors = values[largest], vectors[:, largest]
    if woodbury:
        return np.linalg.inv(vectors * values @ vectors.T + regularization * np.eye(len(matrix)))
    return vectors / (values + regularization) @ vectors.T


def small(rank, library=None, **options):
    """A method whose basis is smaller than the blocks of the tests, so that it iterates."""
    tol = 1e-11 if library is None or library.dtype == "float64" else 1e-7
    return Arnoldi(**{"rank": rank, "krylov_dimension": rank + 4, "tol": tol, **options})


def gradients(setting, points):
    return oracle.gradients(setting.parameters, setting.model.loss, *points)


def accuracy(library):
    """In float32 the vectors turn by its rounding over the gap, and λ divides what is left."""
    return 1e-6 if library.dtype == "float64" else 2e-3


@kinds
@curvatures
@both_forms
@pytest.mark.parametrize("iterates", [False, True], ids=["dense", "iterated"])
def test_influences(library, kind, curvature, woodbury, iterates):
    setting = make_setting(kind, library)
    matrix = setting.oracle().curvature(curvature)
    rank = gap(np.linalg.eigvalsh(matrix))
    size = len(matrix)
    method = small(rank, library, use_woodbury=woodbury)
    if not iterates:
        method = Arnoldi(rank, krylov_dimension=size, use_woodbury=woodbury)
    model = fitted(setting, method, second_order_mode=curvature, regularization=0.1)
    left, right = gradients(setting, setting.host_test()), gradients(setting, setting.host_train)
    for regularization in REGULARIZATIONS:
        model.with_regularization(regularization)
        got = model.influences(*setting.test(), *setting.train)
        want = left @ inverse(matrix, rank, regularization, woodbury) @ right.T
        library.close(got, want, accuracy(library))


@kinds
@curvatures
@both_forms
def test_full_rank_is_exact(library, kind, curvature, woodbury):
    setting = make_setting(kind, library)
    options = {"second_order_mode": curvature, "regularization": 1.0}
    methods = (Arnoldi(1000, use_woodbury=woodbury), Direct())
    full, direct = (fitted(setting, method, **options) for method in methods)
    arguments = (*setting.test(), *setting.train)
    for regularization in REGULARIZATIONS:
        want = setting.oracle().influences(
            *setting.host_test(), *setting.host_train, mode=curvature, regularization=regularization
        )
        got, exact = (
            model.with_regularization(regularization).influences(*arguments)
            for model in (full, direct)
        )
        library.close(got, want, library.accuracy(regularization))
        library.close(got, library.host(exact), library.tolerance)


def test_rank_of_the_block_and_one_less():
    """The eigenvalue that is left out matters less, the smaller it is."""
    setting = make_setting("least_squares")
    matrix = setting.oracle().curvature()
    size = len(matrix)
    b = np.random.default_rng(0).standard_normal((FEW, size))
    for rank in (size - 1, size):
        for method in (Arnoldi(rank, tol=1e-12), Arnoldi(rank, krylov_dimension=size + 5)):
            model = fitted(setting, method, regularization=1e-2)
            values = np.linalg.eigvalsh(matrix)
            got = np.sort(np.linalg.eigvalsh(model.apply_inverse(np.eye(size))))
            want = np.append(np.zeros(size - rank), np.sort(1 / (values[size - rank :] + 1e-2)))
            np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(
        model.apply_inverse(b), np.linalg.solve(matrix + 1e-2 * np.eye(size), b.T).T, rtol=1e-8
    )


@both_forms
@pytest.mark.parametrize("m", [1, FEW, MANY])
@pytest.mark.parametrize("mode", ["up", "perturbation"])
def test_more_and_fewer_points_than_training_points(woodbury, m, mode):
    setting = make_setting("tanh_cross_entropy")
    matrix = setting.oracle().curvature("generalized_gauss_newton")
    rank = gap(np.linalg.eigvalsh(matrix))
    model = fitted(
        setting,
        small(rank, use_woodbury=woodbury),
        second_order_mode="generalized_gauss_newton",
        regularization=1e-2,
    )
    left = gradients(setting, setting.host_test(m)) @ inverse(matrix, rank, 1e-2, woodbury)
    if mode == "up":
        want = left @ gradients(setting, setting.host_train).T
    else:
        mixed = oracle.mixed(setting.parameters, setting.model.loss, *setting.host_train)
        want = np.einsum("mp,nxp->mnx", left, mixed)
    got = model.influences(*setting.test(m), *setting.train, mode=mode)
    setting.library.close(got, want, 1e-6)


@curvatures
@pytest.mark.parametrize("kind", ["least_squares", "tanh_cross_entropy"])
@both_forms
def test_batch_sizes(kind, curvature, woodbury):
    setting = make_setting(kind)
    rank = gap(np.linalg.eigvalsh(setting.oracle().curvature(curvature)))
    method = small(rank, use_woodbury=woodbury)
    answers = [
        fitted(setting, method, batch_size=size, second_order_mode=curvature, regularization=1e-2)
        .influences(*setting.test(), *setting.train)
        for size in (23, 7, 1)
    ]  # fmt: skip
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], rtol=0, atol=1e-8 * np.abs(answers[0]).max())


@both_forms
def test_blocks(library, woodbury):
    setting = make_setting("tanh_squared", library)
    truth = setting.oracle()
    matrix = truth.curvature("gauss_newton")
    rank, regularization = 4, {"hidden": 1e-2, "output": 1e-1}
    model = fitted(
        setting,
        small(rank, library, use_woodbury=woodbury),
        block_structure="layer_wise",
        second_order_mode="gauss_newton",
        regularization=regularization,
    )
    got = model.influences_by_block(*setting.test(), *setting.train)
    assert list(got) == list(LAYERS)
    left, right = gradients(setting, setting.host_test()), gradients(setting, setting.host_train)
    total = 0
    for name, columns in truth.blocks(LAYERS).items():
        middle = inverse(matrix[np.ix_(columns, columns)], rank, regularization[name], woodbury)
        want = left[:, columns] @ middle @ right[:, columns].T
        library.close(got[name], want, accuracy(library))
        total = total + want
    library.close(model.influences(*setting.test(), *setting.train), total, accuracy(library))
    assert set(model.report) == set(LAYERS)


def test_the_negative_eigenvalues_count():
    """The largest in absolute value are of both signs, and each is divided by itself plus λ."""
    setting = make_setting("tanh_squared")
    matrix = setting.oracle().curvature()
    values, vectors = np.linalg.eigh(matrix)
    order = np.argsort(-np.abs(values))
    rank = int(np.argmax(values[order] < 0)) + 1  # the last one kept is the first negative one
    assert values[order[rank - 1]] < -0.1
    model = fitted(setting, small(rank), regularization=1e-2)
    b = vectors[:, order[rank - 1]][None]
    got = model.apply_inverse(b)
    np.testing.assert_allclose(got, b / (values[order[rank - 1]] + 1e-2), atol=1e-6)
    assert model.report.negative_curvature.tolist() == [True]


@both_forms
def test_a_new_regularization_refits_nothing(woodbury):
    setting = make_setting("tanh_squared")
    loader = CountingLoader(setting.loader())
    options = {"second_order_mode": "gauss_newton", "regularization": 1e-3}
    model = influence(setting, small(5, use_woodbury=woodbury), **options).fit(loader)
    before = model.influence_factors(*setting.test())
    loader.since()
    matrix = setting.oracle().curvature("gauss_newton")
    rows = gradients(setting, setting.host_test())
    for regularization in (1e-1, 1e7):
        got = model.with_regularization(regularization).influence_factors(*setting.test())
        want = rows @ inverse(matrix, 5, regularization, woodbury)
        setting.library.close(got, want, 1e-6)
    after = model.with_regularization(1e-3).influence_factors(*setting.test())
    np.testing.assert_array_equal(after, before)
    assert loader.since() == 0


def test_several_regularizations_at_once():
    setting = make_setting("tanh_squared")
    model = fitted(setting, small(5), second_order_mode="gauss_newton", regularization=1.0)
    arguments = (*setting.test(), *setting.train)
    got = model.influences_over(list(REGULARIZATIONS), *arguments)
    for scores, regularization in zip(got, REGULARIZATIONS, strict=True):
        want = model.with_regularization(regularization).influences(*arguments)
        setting.library.close(scores, want, 1e-12)


@pytest.mark.parametrize("seed", [0, 7])
def test_every_library_draws_the_same(float64_library, seed):
    """Stopped before it has converged, the answer depends on every random number."""
    method = small(5, tol=1e-12, max_iter=1, seed=seed)
    answers = []
    for library in (float64_library, STRICT, TORCH):
        if library.installed:
            setting = make_setting("tanh_squared", library)
            with pytest.warns(ConvergenceWarning):
                model = fitted(setting, method, regularization=10.0)
            answers.append(library.host(model.influence_factors(*setting.test())))
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], atol=1e-9 * np.abs(answers[0]).max())


def test_seeds():
    setting = make_setting("tanh_squared")

    def answer(seed):
        with pytest.warns(ConvergenceWarning):
            model = fitted(setting, small(5, max_iter=1, seed=seed), regularization=10.0)
        return model.influence_factors(*setting.test())

    np.testing.assert_array_equal(answer(0), answer(0))
    assert not np.allclose(answer(0), answer(1), rtol=1e-6)


# The report, and what is said


@both_forms
def test_report(library, woodbury):
    """Residuals are those of the approximation; the part outside of the span counts if dropped."""
    setting = make_setting("tanh_squared", library)
    matrix = setting.oracle().curvature("gauss_newton")
    options = {"second_order_mode": "gauss_newton", "regularization": 0.1}
    model = fitted(setting, small(5, library, use_woodbury=woodbury), **options)
    b = np.random.default_rng(0).standard_normal((FEW, len(matrix)))
    model.apply_inverse(library.array(b))
    values, vectors = np.linalg.eigh(matrix)
    outside = b - (b @ vectors[:, -5:]) @ vectors[:, -5:].T
    want = np.zeros(FEW) if woodbury else np.linalg.norm(outside, axis=1)
    report = model.report
    tolerance = 1e-9 if library.dtype == "float64" else 1e-4
    np.testing.assert_allclose(report.residual_norms, want, atol=tolerance * np.abs(b).max() * 10)
    assert values[-5] > 1.05 * values[-6]
    assert report.iterations.tolist() == [0] * FEW
    assert report.converged.tolist() == [True] * FEW
    assert report.negative_curvature.tolist() == [False] * FEW


def test_too_few_restarts_are_told():
    setting = make_setting("tanh_squared")
    loader = CountingLoader(setting.loader())
    model = influence(
        setting, small(5, max_iter=1), block_structure={"all": list(LAYERS["hidden"])}
    )
    with pytest.warns(ConvergenceWarning) as caught:
        model.fit(loader)
    (message,) = (str(warning.message) for warning in caught)
    found = re.fullmatch(
        r"Arnoldi of block 'all': (\d) of 5 eigenpairs have not converged to tol=1e-11 after "
        r"1 restarts \((\d+) passes over the data\); their residuals `‖C v - θ v‖ / \|θ\|` go from "
        r"(\S+) to (\S+)\. Raise `max_iter`.*float64.*",
        message,
    )
    assert found
    assert 1 <= int(found[1]) <= 5
    assert 1e-11 < float(found[3]) <= float(found[4]) < 10
    model.with_regularization(10.0)
    assert np.isfinite(model.influence_factors(*setting.test())).all()


def test_all_restarts_that_it_takes_by_default():
    setting = make_setting("tanh_cross_entropy")
    matrix = setting.oracle().curvature()
    rank = gap(np.linalg.eigvalsh(matrix))
    model = fitted(setting, small(rank), regularization=1e-2)
    want = inverse(matrix, rank, 1e-2, woodbury=False)
    np.testing.assert_allclose(
        model.apply_inverse(np.eye(len(matrix))), want, atol=1e-6 * np.abs(want).max()
    )


def test_the_cost_is_passes_with_few_products():
    setting = make_setting("tanh_cross_entropy")
    loader = CountingLoader(setting.loader())
    model = influence(setting, Arnoldi(10, krylov_dimension=21), regularization=1.0)
    model.fit(loader)
    iterated = loader.since()
    dense = influence(setting, Arnoldi(10, krylov_dimension=43), regularization=1.0)
    dense.fit(loader)
    assert loader.since() < iterated < 43


# Curvature of low rank


def zero_curvature():
    """Zero inputs and no bias: the Hessian of least squares is exactly zero."""
    model = LeastSquares({"weight": np.ones((6, 8))})
    return model, [(np.zeros((5, 8)), np.ones((5, 6)))]


@pytest.mark.parametrize("rank", [5, 10, 40])
def test_no_curvature(rank):
    net, loader = zero_curvature()
    rows = np.random.default_rng(0).standard_normal((2, 48))
    model = Influence(net, None, Arnoldi(rank), backend=BACKEND).fit(loader)
    assert not model.apply_inverse(rows).any()
    woodbury = Influence(
        net, None, Arnoldi(rank, use_woodbury=True), backend=BACKEND, regularization=0.5
    )
    np.testing.assert_allclose(woodbury.fit(loader).apply_inverse(rows), 2 * rows)


def test_full_rank_of_a_singular_curvature():
    net, loader = zero_curvature()
    model = Influence(net, None, Arnoldi(48), backend=BACKEND).fit(loader)
    with pytest.raises(SingularCurvatureError, match="48 of its 48 eigenvalues are zero"):
        model.apply_inverse(np.ones((1, 48)))


def few_points(points, library):
    """A network and data with fewer points than eigenpairs are asked for."""
    setting = make_setting("tanh_squared", library)
    x, y = setting.train
    return setting, [(x[:points, ...], y[:points, ...])]


@pytest.mark.parametrize("method", [Arnoldi(8, krylov_dimension=12, tol=1e-9), Arnoldi(8)], ids=str)
def test_arbitrary_vectors_of_the_null_space_are_left_out(library, method):
    """Three points give a Gauss–Newton matrix of rank three; λ = 0 is its pseudo-inverse."""
    setting, loader = few_points(3, library)
    model = influence(setting, method, second_order_mode="gauss_newton").fit(loader)
    x, y = setting.host_train
    rows = oracle.gradients(setting.parameters, "squared", x[:3], y[:3])
    b = np.random.default_rng(0).standard_normal((FEW, rows.shape[1]))
    b = b.astype(library.dtype).astype(np.float64)
    want = b @ np.linalg.pinv(rows.T @ rows / 3, rcond=1e-9, hermitian=True)
    tolerance = 1e-8 if library.dtype == "float64" else 1e-3
    library.close(model.apply_inverse(library.array(b)), want, tolerance)
    assert model.report.converged.all()


def test_no_regularization_without_woodbury():
    setting = make_setting("tanh_cross_entropy")
    matrix = setting.oracle().curvature("generalized_gauss_newton")
    rank = gap(np.linalg.eigvalsh(matrix))
    mode = "generalized_gauss_newton"
    model = fitted(setting, small(rank), second_order_mode=mode, regularization=0.0)
    want = inverse(matrix, rank, 0.0, woodbury=False)
    got = model.apply_inverse(np.eye(len(matrix)))
    setting.library.close(got, want, 1e-6)


def test_woodbury_needs_regularization():
    assert (Arnoldi().needs_damping, Arnoldi(use_woodbury=True).needs_damping) == (False, True)
    setting = make_setting("tanh_squared")
    with pytest.raises(RegularizationError):
        fitted(setting, Arnoldi(use_woodbury=True), regularization=0.0)


# float32, pickles, settings


@curvatures
def test_float32_converges_at_the_default_tolerance(curvature):
    setting = make_setting("tanh_squared", NUMPY_FLOAT32)
    matrix = setting.oracle().curvature(curvature)
    rank = gap(np.linalg.eigvalsh(matrix))
    method = Arnoldi(rank, krylov_dimension=rank + 8)
    model = fitted(setting, method, second_order_mode=curvature, regularization=0.1)
    rows = gradients(setting, setting.host_test())
    want = rows @ inverse(matrix, rank, 0.1, woodbury=False)
    NUMPY_FLOAT32.close(model.influence_factors(*setting.test()), want, 2e-3)


@pytest.mark.parametrize("method", [small(5), Arnoldi(5), Arnoldi(100, use_woodbury=True)], ids=str)
def test_pickles(method):
    setting = make_setting("tanh_squared")
    model = fitted(setting, method, second_order_mode="gauss_newton", regularization=0.1)
    want = model.influences(*setting.test(), *setting.train)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.influences(*setting.test(), *setting.train), want)


@both_forms
def test_moves(woodbury):
    setting, target = make_setting("tanh_squared", STRICT), Device("device1")
    options = {"second_order_mode": "gauss_newton", "regularization": 0.1}
    model = fitted(setting, small(5, use_woodbury=woodbury), **options)
    want = STRICT.host(model.influences(*setting.test(), *setting.train))
    STRICT_DEVICE.close(model.to(target).influences(*setting.test(), *setting.train), want, 1e-12)


def test_curvature_that_overflows():
    setting = make_setting("least_squares")
    x, y = setting.train
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError):
        influence(setting, small(3)).fit([(1e200 * x, y)])


@pytest.mark.parametrize("name", ["rank", "krylov_dimension", "max_iter"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True])
def test_numbers_are_checked(name, value):
    with pytest.raises(OptionError, match=f"`{name}` must be an integer of one or more.*{value!r}"):
        Arnoldi(**{name: value})


@pytest.mark.parametrize("dimension", [4, 5])
def test_the_dimension_exceeds_the_rank(dimension):
    with pytest.raises(OptionError, match=rf"larger than `rank`, 5; got {dimension}. .* for 20\."):
        Arnoldi(5, krylov_dimension=dimension)


@pytest.mark.parametrize("tol", [-1e-3, np.nan, np.inf, "1e-3", None, True])
def test_the_tolerance_is_checked(tol):
    with pytest.raises(OptionError, match=rf"`tol` must be a finite number.*{tol!r}"):
        Arnoldi(tol=tol)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [("use_woodbury", 1, "True or False"), ("seed", -1, "or zero"), ("seed", 0.0, "or zero")],
)
def test_other_settings_are_checked(name, value, rule):
    with pytest.raises(OptionError, match=f"`{name}` must be .*{rule}.*{value!r}"):
        Arnoldi(**{name: value})
