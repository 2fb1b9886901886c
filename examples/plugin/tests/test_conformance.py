"""The backend keeps every promise of `influence_core.problem`."""

import numpy as np
import pytest
from influence_explicit import poisson_regression

from influence_core.testing import BackendConformance, Subject


def losses(p, x, y):
    return np.exp(eta := x @ p["coefficients"] + p["intercept"]) - y * eta


class TestConformance(BackendConformance):
    @pytest.fixture(scope="class")
    @staticmethod
    def subject():
        data = np.random.default_rng(0).normal(size=(7, 2)), np.arange(7) % 4
        return Subject(poisson_regression([0.3, -0.5], 0.1), data, losses, weighted=lambda *a: a)
