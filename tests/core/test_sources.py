"""Gradient sources: products and combinations are those of the rows, which are computed once."""

from __future__ import annotations

import numpy as np
import pytest
from namespaces import FLOAT64_LIBRARIES
from problems import make_setting

from influence_core.arrays import exchange_for
from influence_core.sources import GradientSource, Points


class Counting:
    """A problem that counts how often gradients are computed."""

    def __init__(self, problem) -> None:
        self.problem = problem
        self.calls = 0

    def gradients(self, batch, names):
        self.calls += 1
        return self.problem.gradients(batch, names)

    def __getattr__(self, name):
        return getattr(self.problem, name)


@pytest.mark.parametrize("library", FLOAT64_LIBRARIES)
def test_products_and_combinations_are_those_of_the_rows(library) -> None:
    setting = make_setting("tanh_cross_entropy", library)
    problem = Counting(setting.problem())
    names = tuple(problem.parameters)
    batch = problem.batch(setting.train)
    source = GradientSource(Points(problem, batch, exchange_for(problem.reference, None)), names)
    rows = library.host(source.rows())
    rng = np.random.default_rng(0)
    v, w = rng.normal(size=(3, rows.shape[1])), rng.normal(size=(5, batch.size))
    library.close(source.products(library.array(v)), v @ rows.T)
    library.close(source.combinations(library.array(w)), w @ rows)
    source.rows()
    assert (source.size, problem.calls) == (batch.size, 1)
