"""The Nyström sketch: exact at full rank, and safe on matrices that it is not made for."""

import numpy as np
import pytest
from namespaces import NUMPY

from influence_core.curvature import nystroem_sketch

SIZE = 12


def rotated(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    vectors = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    return (vectors * values) @ vectors.T


def sketch(matrix, rank, library=NUMPY, seed=0):
    operator = library.array(matrix)
    return nystroem_sketch(lambda v: v @ operator, len(matrix), rank, seed, operator)


def rebuilt(found, library=NUMPY):
    vectors = library.host(found.vectors).astype(np.float64)
    return (vectors.T * found.values) @ vectors


@pytest.mark.parametrize("rank", [SIZE, 100])
def test_full_rank_is_exact(library, rank):
    matrix = rotated(np.linspace(0.1, 3.0, SIZE))
    found = sketch(matrix, rank, library)
    np.testing.assert_allclose(rebuilt(found, library), matrix, atol=100 * library.tolerance)
    assert np.all(np.diff(found.values) <= 0)
    assert not found.clipped.size


def test_rank_of_the_matrix_is_enough(library):
    matrix = rotated(np.array([5.0, 2.0, 1.0] + [0.0] * (SIZE - 3)))
    found = sketch(matrix, 5, library)
    np.testing.assert_allclose(found.values[:3], [5.0, 2.0, 1.0], rtol=1e-4)
    # half of the digits: the square root of the core is of a singular matrix
    tolerance = 1e-6 if library.dtype == "float64" else 1e-2
    np.testing.assert_allclose(rebuilt(found, library), matrix, atol=tolerance)


def test_vectors_are_orthonormal(library):
    found = sketch(rotated(2.0 ** -np.arange(SIZE)), 6, library)
    library.close(found.vectors @ found.vectors.T, np.eye(6), library.tolerance)


@pytest.mark.parametrize("seed", range(5))
def test_between_zero_and_the_matrix(seed):
    """`0 ⪯ C_nys ⪯ C` for positive semi-definite `C`."""
    matrix = rotated(2.0 ** -np.arange(SIZE), seed)
    approximation = rebuilt(sketch(matrix, 4, seed=seed))
    assert np.linalg.eigvalsh(approximation)[0] > -1e-12
    assert np.linalg.eigvalsh(matrix - approximation)[0] > -1e-12


@pytest.mark.parametrize("rank", [3, 6, 9, 12])
def test_no_eigenvalue_above_the_norm_of_an_indefinite_matrix(rank):
    clipped = 0
    for seed in range(60):
        matrix = rotated(np.random.default_rng(seed).standard_normal(SIZE), seed)
        found = sketch(matrix, rank, seed=seed)
        norm = np.linalg.norm(matrix, 2)
        assert found.values.max(initial=0.0) <= norm * (1 + 1e-9), seed
        clipped += found.clipped.size > 0
    assert clipped > 30


def test_the_textbook_recipe_would_blow_up():
    """What the test above guards against: a core with eigenvalues of both signs near zero."""
    matrix = np.diag([1.0, -1.0 + 1e-9])
    tests = np.array([[1.0, 1.0]]) / np.sqrt(2)
    images = tests @ matrix
    (core,) = np.ravel(images @ tests.T)
    assert np.sum(images**2) / core > 1e8


def test_zero_matrix_has_no_eigenpairs(library):
    found = sketch(np.zeros((4, 4)), 3, library)
    assert found.values.size == 0
    assert tuple(found.vectors.shape) == (0, 4)


def test_few_directions_see_a_leading_eigenvalue():
    """A rank far below the size: the tests then hold a small part of every eigenvector."""
    vector = np.random.default_rng(0).standard_normal(2000)
    matrix = np.outer(vector, vector)
    found = sketch(matrix, 5)
    np.testing.assert_allclose(found.values[0], vector @ vector, rtol=1e-6)
    assert not found.clipped.size


def test_two_products_whatever_the_rank():
    calls = []
    matrix = rotated(np.linspace(1.0, 2.0, SIZE))

    def product(v):
        calls.append(v.shape)
        return v @ matrix

    nystroem_sketch(product, SIZE, 5, 0, matrix)
    assert calls == [(5, SIZE)] * 2
