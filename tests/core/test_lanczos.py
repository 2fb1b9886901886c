"""Thick-restart block Lanczos against dense decompositions and ARPACK, and on awkward spectra."""

import numpy as np
import pytest
from namespaces import NUMPY, NUMPY_FLOAT32

from influence_core.errors import NonFiniteError
from influence_core.methods.krylov import Spectrum, lanczos

SIZE = 200
I = np.arange(SIZE)  # noqa: E741 - the index of an eigenvalue
SPECTRA = {
    "geometric": 0.99**I,
    "fast": 0.8**I,
    "polynomial": 1.0 / (1.0 + I) ** 2,
    "digits-like": np.where(I < 9, 12.0 - I, 2.0 * np.exp(-I / 25.0)),
    "clustered": np.where(I < 8, 1.0 + 1e-6 * I, 0.5 * 0.98**I),
    "multiple": np.where(I < 20, 5.0 - I // 5, 0.9**I),
    "more copies than wanted": np.where(I < 30, 5.0, 0.9**I),
    "indefinite pairs": np.where(I % 2, -1.0, 1.0) * 0.95 ** (I // 2),
    "negative": -(0.95**I),
    "mostly copies": np.round(3.0 * np.random.default_rng(1).standard_normal(SIZE)),
    "one value": np.full(SIZE, 2.0),
    "rank three": np.where(I < 3, 3.0 - I, 0.0),
    "zero": np.zeros(SIZE),
}
FULL_RANK = [name for name in SPECTRA if name not in ("rank three", "zero")]
SHAPES = [(1, 20), (6, 20), (10, 21), (10, 40), (30, 61), (10, 14)]  # (rank, dimension)

spectra = pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
shapes = pytest.mark.parametrize(("rank", "dimension"), SHAPES)


def rotated(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    vectors = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    return (vectors * values) @ vectors.T


class Counted:
    """`v ↦ v · C`, and the numbers of rows that it was called with."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.rows = []

    def __call__(self, v):
        self.rows.append(v.shape[0])
        return v @ self.matrix


def search(matrix, rank, dimension, library=NUMPY, tol=1e-6, restarts=2000, seed=0):
    operator = library.array(matrix)
    wanted = Spectrum(rank, dimension, tol, restarts, seed)
    return lanczos(lambda v: v @ operator, len(matrix), wanted, operator)


def largest(values, rank):
    return values[np.argsort(-np.abs(values), kind="stable")[:rank]]


def residuals(found, matrix, library=NUMPY):
    vectors = library.host(found.vectors).astype(np.float64)
    return np.linalg.norm(vectors @ matrix - found.values[:, None] * vectors, axis=1)


@spectra
@shapes
@pytest.mark.parametrize("tol", [1e-6, 1e-11])
def test_against_a_dense_decomposition(spectrum, rank, dimension, tol):
    matrix = rotated(spectrum)
    found = search(matrix, rank, dimension, tol=tol)
    assert found.converged.all()
    want = np.abs(largest(spectrum, rank))
    # an error is the square of a residual over a gap, and the residual where there is no gap
    accuracy = tol if np.any(np.abs(np.diff(want)[np.diff(want) != 0]) < 1e-5) else 1e-10
    np.testing.assert_allclose(np.abs(found.values), want, rtol=0, atol=accuracy * want.max())
    assert np.all(np.diff(np.abs(found.values)) <= 0)
    measured = residuals(found, matrix)
    rounding = 20 * np.finfo(float).eps * want.max()
    assert np.all(measured <= np.maximum(tol * np.abs(found.values), rounding))
    np.testing.assert_allclose(found.residual_norms, measured, rtol=1e-2, atol=rounding)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(rank), atol=1e-12)


@pytest.mark.parametrize("name", FULL_RANK)
@pytest.mark.parametrize(("rank", "dimension"), [(6, 20), (10, 21)])
def test_against_arpack(name, rank, dimension):
    eigsh = pytest.importorskip("scipy.sparse.linalg").eigsh
    matrix = rotated(SPECTRA[name], seed=2)
    found = search(matrix, rank, dimension, tol=1e-11)
    start = np.random.default_rng(0).standard_normal(SIZE)
    want = eigsh(matrix, k=rank, ncv=4 * rank, which="LM", tol=1e-13, v0=start)[0]
    assert np.abs(found.values).min() >= np.abs(want).min() - 1e-10  # ARPACK may miss copies
    if "copies" not in name and name != "multiple":
        np.testing.assert_allclose(np.sort(np.abs(found.values)), np.sort(np.abs(want)), rtol=1e-10)


@pytest.mark.parametrize("seed", range(8))
def test_no_copy_of_an_eigenvalue_is_missed(seed):
    """Up to ten copies, in blocks of three, beside others a third below."""
    values = np.round(3.0 * np.random.default_rng(seed).standard_normal(400))
    found = search(np.diag(values), 10, 21, seed=seed)
    np.testing.assert_allclose(np.abs(found.values), np.abs(largest(values, 10)), rtol=1e-10)


def test_signs_are_found_with_the_sizes():
    spectrum = np.where(I % 3, 1.0, -1.0) * 0.9**I
    found = search(rotated(spectrum), 9, 20, tol=1e-10)
    np.testing.assert_allclose(found.values, spectrum[:9], rtol=1e-10)


def test_vectors_of_simple_eigenvalues():
    vectors = np.linalg.qr(np.random.default_rng(3).standard_normal((SIZE, SIZE)))[0]
    matrix = (vectors * 0.8**I) @ vectors.T
    found = search(matrix, 5, 20, tol=1e-12)
    np.testing.assert_allclose(np.abs(found.vectors @ vectors[:, :5]), np.eye(5), atol=1e-10)


def test_every_library(library):
    matrix = rotated(SPECTRA["digits-like"])
    found = search(matrix, 10, 21, library, tol=1e-9)
    assert found.converged.all()
    want = SPECTRA["digits-like"][:10]
    np.testing.assert_allclose(found.values, want, rtol=library.tolerance)
    library.close(found.vectors @ found.vectors.T, np.eye(10), library.tolerance)
    reference = search(matrix, 10, 21, NUMPY, tol=1e-9)
    overlap = library.host(found.vectors).astype(np.float64) @ reference.vectors.T
    np.testing.assert_allclose(np.linalg.norm(overlap, axis=1), 1.0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in SPECTRA if name != "geometric"])
def test_float32_reaches_rounding(name):
    """Residuals small against the small pairs are out of reach, and not asked for."""
    matrix = rotated(SPECTRA[name])
    found = search(matrix, 10, 21, NUMPY_FLOAT32, tol=1e-8, restarts=150)
    assert found.converged.all()
    want = np.abs(largest(SPECTRA[name], 10))
    np.testing.assert_allclose(np.abs(found.values), want, rtol=0, atol=2e-6 * want.max())
    bound = 20 * np.finfo(np.float32).eps * want.max()
    assert residuals(found, matrix, NUMPY_FLOAT32).max() <= bound
    vectors = NUMPY_FLOAT32.host(found.vectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(10), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e-8, 1e8, 1e25])
def test_float32_at_any_scale(scale):
    """Neither squares that underflow nor such that overflow end the iteration."""
    found = search(scale * rotated(0.9**I), 5, 20, NUMPY_FLOAT32)
    assert found.converged.all()
    np.testing.assert_allclose(found.values, scale * 0.9 ** I[:5], rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "rank", "dimension"), [(2, 1, 2), (5, 2, 3), (9, 4, 8), (9, 8, 9)]
)
def test_small_matrices(size, rank, dimension):
    values = np.array([7.0, -6.0, 5.0, 4.0, -3.0, 2.0, 1.0, 0.5, 0.1])[:size]
    found = search(rotated(values), rank, dimension, tol=1e-12)
    np.testing.assert_allclose(found.values, values[:rank], rtol=1e-10)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(rank), atol=1e-12)


def test_the_whole_space_needs_no_restart():
    product = Counted(rotated(np.arange(1.0, 13.0)))
    found = lanczos(product, 12, Spectrum(4, 12, 0.0, 100), product.matrix)
    assert (sum(product.rows), found.restarts) == (12, 0)
    assert found.converged.all()


def test_a_start_in_an_invariant_subspace_is_left():
    """`C` is zero but for one column that the first block hardly sees."""
    matrix = np.zeros((50, 50))
    matrix[0, 0] = 1.0
    found = search(matrix, 3, 12)
    np.testing.assert_allclose(found.values, [1.0, 0.0, 0.0], atol=1e-14)
    np.testing.assert_allclose(np.abs(found.vectors[0, 0]), 1.0)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(3), atol=1e-12)


# What it costs, and when it ends


@shapes
def test_no_product_is_larger_than_a_block(rank, dimension):
    product = Counted(rotated(SPECTRA["digits-like"]))
    wanted = Spectrum(rank, dimension, 1e-6, 1000)
    found = lanczos(product, SIZE, wanted, product.matrix)
    assert max(product.rows) == wanted.block == -(-(dimension - rank) // 4)
    assert found.passes == len(product.rows)


@pytest.mark.parametrize("name", ["fast", "polynomial", "digits-like", "multiple"])
def test_fewer_passes_than_arpack_makes_products(name):
    eigsh = pytest.importorskip("scipy.sparse.linalg").eigsh
    operators = pytest.importorskip("scipy.sparse.linalg").LinearOperator
    product = Counted(rotated(SPECTRA[name]))
    found = lanczos(product, SIZE, Spectrum(10, 21, 1e-6, 1000), product.matrix)
    calls = []
    operator = operators(
        (SIZE, SIZE), lambda v: calls.append(v) or product.matrix @ v, dtype=np.float64
    )
    eigsh(operator, k=10, ncv=21, tol=1e-6, v0=np.ones(SIZE))
    assert found.passes < len(calls)


@pytest.mark.parametrize("restarts", [1, 2, 5])
def test_restarts_are_bounded(restarts):
    matrix = rotated(0.999**I)
    found = search(matrix, 10, 21, tol=1e-10, restarts=restarts)
    assert found.restarts == restarts
    assert found.passes == 7 + 2 * restarts  # a basis of 21 in blocks of 3, then half of the room
    assert not found.converged.all()
    np.testing.assert_allclose(found.residual_norms, residuals(found, matrix), rtol=1e-6)
    assert found.converged.tolist() == (found.residual_norms <= 1e-10 * found.values).tolist()


def test_tighter_tolerances_cost_more():
    matrix = rotated(SPECTRA["geometric"])
    passes = [search(matrix, 10, 21, tol=tol).passes for tol in (1e-2, 1e-5, 1e-9)]
    assert passes == sorted(set(passes))


def test_noise_ends_the_iteration():
    """Residuals that no restart lowers are told from slow ones."""
    matrix, rng = rotated(0.97**I), np.random.default_rng(0)
    found = lanczos(
        lambda v: v @ matrix + 1e-10 * rng.standard_normal(v.shape),
        SIZE,
        Spectrum(6, 20, 1e-13, 5000),
        matrix,
    )
    assert not found.converged.all()
    assert 200 <= found.restarts < 600
    np.testing.assert_allclose(found.values, 0.97 ** I[:6], atol=1e-8)


def test_slow_spectra_are_waited_for():
    values = np.linspace(1.0, 0.0, 1000)
    found = lanczos(lambda v: v * values, 1000, Spectrum(6, 20, 1e-9, 3000), values)
    assert found.converged.all()
    np.testing.assert_allclose(found.values, values[:6], rtol=1e-10)


def test_seeds():
    matrix = rotated(SPECTRA["fast"])
    first, again, other = (search(matrix, 5, 20, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.vectors, again.vectors)
    assert not np.array_equal(first.vectors, other.vectors)
    np.testing.assert_allclose(first.values, other.values, rtol=1e-10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("when", [0, 5])
def test_products_that_are_not_finite(bad, when):
    product = Counted(rotated(SPECTRA["geometric"]))

    def spoiled(v):
        image = product(v)
        return image + bad if len(product.rows) > when else image

    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError, match="NaN or infinite"):
        lanczos(spoiled, SIZE, Spectrum(5, 20, 1e-6, 100), product.matrix)
