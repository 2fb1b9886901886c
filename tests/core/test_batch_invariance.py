"""The objective is a mean over points: no answer depends on how the data is cut."""

import numpy as np
import pytest
from methods import BATCH_INVARIANT, CASES
from namespaces import NUMPY_FLOAT32
from problems import CURVATURES, REPRESENTATIVE, N, influence, make_setting

SIZES = (1, 7, 23, 100)
WEIGHTS = np.linspace(0.0, 3.0, N)  # the first batch of one point has weight zero
cases = pytest.mark.parametrize("case", BATCH_INVARIANT)
weightings = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])


def loader(setting, size, weights):
    batches = setting.loader(size)
    if weights is None:
        return batches
    cuts = range(0, N, size)
    shares = [setting.library.array(weights[at : at + size]) for at in cuts]
    return [(x, y, w) for (x, y), w in zip(batches, shares, strict=True)]


@cases
@weightings
@pytest.mark.parametrize(("kind", "curvature"), REPRESENTATIVE)
def test_any_batch_size_gives_the_same(case, weights, kind, curvature):
    setting = make_setting(kind)
    truth = case.reference(setting, curvature, weights=weights)
    want = truth.influence_factors(*setting.host_test(), 1e-2)
    for size in SIZES[:3]:
        model = case.influence(setting, second_order_mode=curvature, regularization=1e-2)
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


@cases
@pytest.mark.parametrize("curvature", CURVATURES[1:])
def test_float32(case, curvature):
    setting = make_setting("tanh_squared", NUMPY_FLOAT32)
    truth = case.reference(setting, curvature)
    for size in SIZES:
        model = case.influence(setting, second_order_mode=curvature, regularization=1e-3)
        model.fit(setting.loader(size))
        for regularization in (1e-3, 1e-2):
            model.with_regularization(regularization)
            got = model.influence_factors(*setting.test())
            want = truth.influence_factors(*setting.host_test(), regularization)
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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("curvature", CURVATURES)
def test_penalty_is_part_of_every_curvature(case, curvature):
    setting = make_setting("logistic")
    penalty = {"weight": 0.3, "bias": 0.1}
    options = {"second_order_mode": curvature, "penalty": penalty, "regularization": 1e-3}
    got = case.fitted(setting, **options).influence_factors(*setting.test())
    truth = case.reference(setting, curvature, penalty=penalty)
    want = truth.influence_factors(*setting.host_test(), 1e-3)
    setting.library.close(got, want, case.accuracy)
