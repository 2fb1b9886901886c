"""Predicted changes against estimators that scikit-learn fits without the point."""

import tracemalloc

import numpy as np
import pytest
from fits import EXACT, NAMES, M, N, fit, logistic
from namespaces import NUMPY, STRICT
from scipy.sparse import coo_array
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from influence_core import DataError
from influence_sklearn import influences, leave_one_out

weighted = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


def actual(setting, points=range(N)):
    before = setting.losses(setting.estimator, *setting.test)
    without = [setting.again(np.arange(N) != j) for j in points]
    return np.stack([setting.losses(e, *setting.test) - before for e in without], axis=1)


def predicted(setting):
    return leave_one_out(
        setting.estimator, setting.x, setting.y, *setting.test, sample_weight=setting.weights
    )


@weighted
@pytest.mark.parametrize("kind", EXACT)
def test_least_squares_is_exact(kind, weighted):
    setting = fit(kind, weighted=weighted)
    got = predicted(setting)
    assert got.shape == (M, N)
    NUMPY.close(got, actual(setting), 1e-8)


def test_real_data_is_exact():
    x, y = load_diabetes(return_X_y=True)
    x, y, test = x[:200], y[:200], (x[200:230], y[200:230])
    ridge = Ridge(0.1).fit(x, y)
    got = leave_one_out(ridge, x, y, *test)
    points = np.arange(0, 200, 9)

    def losses(estimator):
        return (estimator.predict(test[0]) - test[1]) ** 2

    want = [losses(Ridge(0.1).fit(np.delete(x, j, 0), np.delete(y, j))) for j in points]
    NUMPY.close(got[:, points], (np.stack(want) - losses(ridge)).T, 1e-8)


def test_pipelines_are_exact_where_the_steps_stay():
    setting = fit("ridge, a penalty a target")
    steps = PolynomialFeatures(2).fit(setting.x)
    pipeline = make_pipeline(steps, clone(setting.estimator)).fit(setting.x, setting.y)
    x, x_test = steps.transform(setting.x), steps.transform(setting.x_test)
    got = leave_one_out(pipeline, setting.x, setting.y, *setting.test)
    before = setting.losses(pipeline[-1], x_test, setting.y_test)
    for j in (0, 31):
        kept = np.arange(N) != j
        again = clone(setting.estimator).fit(x[kept], setting.y[kept])
        NUMPY.close(got[:, j], setting.losses(again, x_test, setting.y_test) - before, 1e-8)


def study(data, classes=None, penalty=1.0):
    x, y = data(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order]
    train, test = slice(0, 100), slice(100, 140)
    estimator = logistic(C=penalty, solver="newton-cholesky").fit(x[train], y[train])

    def losses(estimator):
        return -estimator.predict_log_proba(x[test])[np.arange(40), y[test]]

    without = [
        losses(clone(estimator).fit(np.delete(x[train], j, 0), np.delete(y[train], j)))
        for j in range(100)
    ]
    want = (np.stack(without) - losses(estimator)).T
    sides = x[train], y[train], x[test], y[test]
    return leave_one_out(estimator, *sides), influences(estimator, *sides) / 100, want


@pytest.mark.parametrize(
    ("data", "penalty"), [(load_iris, 1.0), (load_breast_cancer, 0.1)], ids=["iris", "cancer"]
)
def test_logistic_regression_is_close(data, penalty):
    """With the leverage closer than without; right in size, not only in order."""
    got, first_order, want = study(data, penalty=penalty)
    correlation = np.corrcoef(got.ravel(), want.ravel())[0, 1]
    assert correlation > 0.999
    assert correlation > np.corrcoef(first_order.ravel(), want.ravel())[0, 1]
    large = np.abs(want) > 0.1 * np.abs(want).max()
    assert np.median(np.abs(got[large] / want[large] - 1)) < 0.03


@pytest.mark.parametrize(
    "kind",
    [
        "binary",
        "binary, liblinear",
        "binary, classes weighted",
        "multinomial",
        "multinomial, classes weighted",
    ],
)
def test_weights_and_penalties_of_logistic_regression(kind):
    setting = fit(kind, weighted=True)
    points = np.argsort(setting.weights)[:20]
    got, want = predicted(setting)[:, points], actual(setting, points)
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.999
    large = np.abs(want) > 0.1 * np.abs(want).max()
    assert np.median(np.abs(got[large] / want[large] - 1)) < 0.05


def test_weights_of_balanced_classes_stay():
    setting = fit("multinomial")
    count = np.array([np.sum(setting.y == name) for name in NAMES])
    by_class = dict(zip(NAMES.tolist(), N / (3 * count), strict=True))
    balanced, given = (
        clone(setting.estimator).set_params(class_weight=each).fit(setting.x, setting.y)
        for each in ("balanced", by_class)
    )
    got, want = (leave_one_out(e, setting.x, setting.y, *setting.test) for e in (balanced, given))
    NUMPY.close(got, want, 1e-8)


def test_bad_test_points_are_named():
    setting = fit("ridge")
    with pytest.raises(DataError, match=r"leave_one_out\(…, X_test, y_test\)"):
        leave_one_out(
            setting.estimator, setting.x, setting.y, setting.x_test * np.nan, setting.y_test
        )


class Frame:
    """What is read by places, not by slices of its own, as data frames are."""

    def __init__(self, values):
        self.values, self.iloc = values, self

    def __len__(self):
        return len(self.values)

    def __getitem__(self, points):
        return Frame(self.values[points])

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


SLICED = {
    "arrays": np.asarray,
    "lists": lambda array: array.tolist(),
    "frames": Frame,
    "another library": STRICT.array,
    "sparse": lambda array: coo_array(array) if array.ndim == 2 else array,
}


@pytest.mark.parametrize("kind", SLICED)
def test_training_points_are_cut_to_memory(kind):
    setting, convert = fit("ridge", weighted=True), SLICED[kind]
    training = convert(setting.x), convert(setting.y)
    weights = convert(setting.weights)
    got = leave_one_out(
        setting.estimator, *training, *setting.test, sample_weight=weights, max_memory=7 * 8 * 60
    )
    NUMPY.close(got, predicted(setting), 1e-12)


@pytest.mark.parametrize("call", [influences, leave_one_out])
def test_memory_of_wide_problems_is_bounded(call):
    """Far less than the gradients of all points, `(n, d)`, beside the data and the Hessian."""
    rng = np.random.default_rng(0)
    n, d = 6000, 3 * 61
    x, y = rng.standard_normal((n, 60)), rng.integers(0, 3, n)
    estimator = LogisticRegression(max_iter=300).fit(x, y)

    def peak(**options):
        tracemalloc.start()
        call(estimator, x, y, x[:5], y[:5], **options)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    bounded = x.nbytes + 3 * 8 * d * d + 2**20
    assert peak(max_memory=2**20) < bounded < 8 * n * d < peak()
