"""The backend keeps every promise of `influence_core.problem`."""

import numpy as np
import pytest
from influence_explicit import poisson_regression

from influence_core.testing import BackendConformance, FiniteDifferences, Subject


def losses(parameters, x, y):
    eta = x @ parameters["coefficients"] + parameters["intercept"]
    return np.exp(eta) - y * eta


@pytest.fixture(scope="module")
def subject():
    model = poisson_regression(np.array([0.3, -0.5, 0.2]), 0.1)
    x, y = np.random.default_rng(0).normal(size=(7, 3)), np.arange(7) % 4
    oracle = FiniteDifferences(losses)
    return Subject(model, None, (x, y), lambda: model.parameters, oracle, weighted=lambda *a: a)


class TestConformance(BackendConformance):
    pass
