"""What the kit makes of layers: their columns, and the gradients that their statistics say."""

from types import SimpleNamespace

import numpy as np
import pytest

from influence_core.problem import FreeParameters, Layer, LayerStatistics
from influence_core.testing import FiniteDifferences, Subject
from influence_core.testing.conformance.layer_columns import (
    columns_of,
    gradients_of,
    shapes_of,
    size_of,
)

SHAPES = {"kernel": (4, 2, 3), "bias": (4,), "table": (3, 2)}
WHERE = {"kernel": np.arange(24), "bias": 24 + np.arange(4), "table": 28 + np.arange(6)}
POINTS, POSITIONS = 5, 2
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def subject():
    model = SimpleNamespace(parameters={name: np.zeros(shape) for name, shape in SHAPES.items()})
    return Subject(model, (np.zeros((POINTS, 1)), np.zeros(POINTS)), FiniteDifferences(None))


def test_a_part_of_the_rows(subject):
    """The second half of a grouped convolution: rows 2 and 3 of `(4, 2·3)`."""
    layer = Layer("kernel", "bias", inputs=6, outputs=2, first=2)
    want = np.concatenate([WHERE["kernel"][12:], WHERE["bias"][2:]])
    np.testing.assert_array_equal(columns_of(layer, subject), want)
    assert size_of(layer) == 14
    a, g = RNG.random((POINTS, POSITIONS, 6)), RNG.random((1, POINTS, POSITIONS, 2))
    weight = sum(g[:, :, s, :, None] * a[None, :, s, None, :] for s in range(POSITIONS))
    want = np.concatenate([weight.reshape(1, POINTS, 12), g.sum(axis=2)], axis=2)
    np.testing.assert_allclose(gradients_of(layer, LayerStatistics(a, g)), want)
    assert shapes_of(layer, 1, POINTS, POSITIONS) == (a.shape, g.shape)


def test_a_part_of_the_columns_of_a_transposed_weight(subject):
    layer = Layer("table", None, inputs=3, outputs=1, transposed=True, first=1)
    np.testing.assert_array_equal(columns_of(layer, subject), WHERE["table"][1::2])
    assert size_of(layer) == 3


def test_a_lookup(subject):
    layer = Layer("table", None, inputs=3, outputs=2, transposed=True, lookup=True)
    np.testing.assert_array_equal(columns_of(layer, subject), WHERE["table"])
    a, g = RNG.integers(0, 3, (POINTS, POSITIONS)), RNG.random((2, POINTS, POSITIONS, 2))
    want = np.zeros((2, POINTS, 3, 2))
    for point in range(POINTS):
        for position in range(POSITIONS):
            want[:, point, a[point, position]] += g[:, point, position]
    got = gradients_of(layer, LayerStatistics(a, g))
    np.testing.assert_allclose(got, want.reshape(2, POINTS, 6))
    assert shapes_of(layer, 2, POINTS, POSITIONS) == (a.shape, g.shape)


def test_free_parameters(subject):
    layer = FreeParameters(("table", "bias"), 10)
    want = np.concatenate([WHERE["table"], WHERE["bias"]])
    np.testing.assert_array_equal(columns_of(layer, subject), want)
    assert size_of(layer) == 10
    a, g = np.zeros((POINTS, POSITIONS, 0)), RNG.random((1, POINTS, POSITIONS, 10))
    np.testing.assert_allclose(gradients_of(layer, LayerStatistics(a, g)), g.sum(axis=2))
    assert shapes_of(layer, 1, POINTS, POSITIONS) == (a.shape, g.shape)
