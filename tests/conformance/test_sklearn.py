"""The scikit-learn backend conforms: every estimator, with penalties and weights."""

import numpy as np
import pytest
from subjects import INPUTS, POINTS, cross_entropy

from influence_core.testing import BackendConformance, FiniteDifferences, Subject

pytest.importorskip("sklearn")

from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

RNG = np.random.default_rng(5)
X = RNG.standard_normal((POINTS, INPUTS))
TARGETS = RNG.standard_normal((POINTS, 2))
BINARY = np.array(["no", "yes", "yes", "no", "yes", "no", "yes"])
LABELS = np.array([0, 1, 2, 0, 2, 1, 0])


def outputs(parameters, x):
    return x @ parameters["coef"].T + parameters.get("intercept", 0.0)


def squared(f, y):
    return np.sum((f - y) ** 2, axis=1)


def binary(f, y):
    return np.log1p(np.exp(f[:, 0])) - (y == "yes") * f[:, 0]


def centred(fitted):
    """Cross-entropy with the curvature that the backend adds along a common shift."""

    def losses(f, y):
        return cross_entropy(f, y) + np.mean(f - fitted, axis=1) ** 2 / 2

    return losses


def parameters_of(estimator):
    values = {"coef": np.atleast_2d(estimator.coef_)}
    if estimator.fit_intercept:
        values["intercept"] = np.reshape(estimator.intercept_, -1)
    return values


def subject_of(estimator, y, losses, penalty=None, **fields):
    fitted = estimator.fit(X, y)

    def second(parameters, weight):
        return np.sum(penalty * parameters["coef"] ** 2) / 2 / weight

    return Subject(
        fitted,
        (X, y),
        FiniteDifferences(lambda p, x, y: losses(outputs(p, x), y), outputs, losses),
        parameters=lambda: parameters_of(fitted),
        weighted=lambda x, y, w: (x, y, w),
        penalty=None if penalty is None else second,
        **fields,
    )


def linear():
    return subject_of(LinearRegression(), TARGETS, squared)


def ridge():
    alpha = np.array([0.3, 1.5])
    return subject_of(Ridge(alpha, fit_intercept=False), TARGETS, squared, 2 * alpha[:, None])


def logistic():
    return subject_of(LogisticRegression(C=0.8, tol=1e-10), BINARY, binary, 1 / 0.8)


def multinomial():
    estimator = LogisticRegression(C=2.0, tol=1e-10).fit(X, LABELS)
    losses = centred(outputs(parameters_of(estimator), X))
    # the labels' distribution knows nothing of the curvature that was added
    return subject_of(estimator, LABELS, losses, 1 / 2.0, natural=False)


class TestConformance(BackendConformance):
    @pytest.fixture(scope="class", params=[linear, ridge, logistic, multinomial])
    @staticmethod
    def subject(request):
        return request.param()
