"""The objective is a mean over points: no answer depends on how the data is cut."""

import numpy as np
import pytest
from namespaces import NUMPY_FLOAT32
from problems import CURVATURES, REPRESENTATIVE, N, influence, make_setting, tight

from influence_core import Direct, JacobiPreconditioner, NystroemPreconditioner

SIZES = (1, 7, 23, 100)
WEIGHTS = np.linspace(0.0, 3.0, N)  # the first batch of one point has weight zero
METHODS = {
    "direct": Direct(),
    "cg": tight(),
    "block cg": tight(solve_simultaneously=True),
    "precomputed": tight(precompute_grad=True),
    "jacobi": tight(preconditioner=JacobiPreconditioner()),
    "nystroem": tight(preconditioner=NystroemPreconditioner(6)),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
weightings = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])


def loader(setting, size, weights):
    batches = setting.loader(size)
    if weights is None:
        return batches
    cuts = range(0, N, size)
    shares = [setting.library.array(weights[at : at + size]) for at in cuts]
    return [(x, y, w) for (x, y), w in zip(batches, shares, strict=True)]


@methods
@weightings
@pytest.mark.parametrize(("kind", "curvature"), REPRESENTATIVE)
def test_any_batch_size_gives_the_same(method, weights, kind, curvature):
    setting = make_setting(kind)
    options = {"regularization": 1e-2}
    want = setting.oracle(weights=weights).influence_factors(
        *setting.host_test(), mode=curvature, **options
    )
    for size in SIZES:
        model = influence(setting, method, second_order_mode=curvature, **options)
        got = model.fit(loader(setting, size, weights)).influence_factors(*setting.test())
        setting.library.close(got, want, 1e-8)


@weightings
@pytest.mark.parametrize(("kind", "curvature"), REPRESENTATIVE)
def test_on_every_library(library, weights, kind, curvature):
    setting = make_setting(kind, library)
    options = {"regularization": 1e-2}
    want = setting.oracle(weights=weights).influences(
        *setting.host_test(), *setting.host_train, mode=curvature, **options
    )
    for size in SIZES:
        model = influence(setting, second_order_mode=curvature, **options)
        model.fit(loader(setting, size, weights))
        got = model.influences(*setting.test(), *setting.train)
        library.close(got, want, library.accuracy(1e-2))


@pytest.mark.parametrize("curvature", CURVATURES[1:])
@pytest.mark.parametrize("regularization", [1e-3, 1e-2])
@pytest.mark.parametrize("together", [False, True], ids=["rows", "block"])
def test_float32_with_an_ordinary_tolerance(curvature, regularization, together):
    setting = make_setting("tanh_squared", NUMPY_FLOAT32)
    options = {"regularization": regularization, "second_order_mode": curvature}
    method = tight(
        rtol=1e-6, solve_simultaneously=together, maxiter=300, warn_on_max_iteration=False
    )
    want = setting.oracle().influence_factors(
        *setting.host_test(), mode=curvature, regularization=regularization
    )
    for size in SIZES:
        model = influence(setting, method, **options).fit(setting.loader(size))
        got = model.influence_factors(*setting.test())
        NUMPY_FLOAT32.close(got, want, NUMPY_FLOAT32.accuracy(regularization))


@pytest.mark.parametrize("curvature", CURVATURES)
def test_weights_are_repetitions(curvature):
    """A point of weight 3 counts as three points."""
    setting = make_setting("logistic")
    x, y = setting.train
    counts = np.arange(N) % 4
    options = {"regularization": 1e-2, "second_order_mode": curvature}
    repeated = influence(setting, **options).fit([(np.repeat(x, counts, 0), np.repeat(y, counts))])
    weighted = influence(setting, **options).fit(loader(setting, 7, counts.astype(float)))
    np.testing.assert_allclose(
        weighted.influence_factors(*setting.test()),
        repeated.influence_factors(*setting.test()),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("curvature", CURVATURES)
@methods
def test_penalty_is_part_of_every_curvature(method, curvature):
    setting = make_setting("logistic")
    penalty = {"weight": 0.3, "bias": 0.1}
    model = influence(setting, method, second_order_mode=curvature, penalty=penalty)
    got = model.fit(setting.loader()).influence_factors(*setting.test())
    truth = setting.oracle(penalty=penalty)
    setting.library.close(got, truth.influence_factors(*setting.host_test(), mode=curvature), 1e-8)
