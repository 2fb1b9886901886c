"""What layers of each kind saw, against sums over points, slices and positions in NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from namespaces import NUMPY

from influence_core.arrays import sum_by_index
from influence_core.arrays.indexing import _by_masks
from influence_core.layers import AffineSeen, Bases, FreeSeen, LookupSeen, numbers_of
from influence_core.problem import LayerStatistics

C, N, S, O, I = 3, 6, 4, 5, 7  # noqa: E741 - the letters of the core
KINDS = ("affine", "lookup", "free")
SHARES = np.random.default_rng(9).uniform(0.1, 1.0, N)

kinds = pytest.mark.parametrize("kind", KINDS)
sharings = pytest.mark.parametrize("reduce", [False, True], ids=["expand", "reduce"])
paddings = pytest.mark.parametrize("padded", [False, True])
positions = pytest.mark.parametrize("s", [1, S, 40])


@dataclasses.dataclass(frozen=True)
class Truth:
    """What was seen, on the host: `a'` as vectors, whatever the kind."""

    inputs: np.ndarray
    gradients: np.ndarray
    counted: np.ndarray

    def means(self):
        """What a position counts in the mean of its point, `(n, s)`."""
        totals = self.counted.sum(axis=1, keepdims=True)
        return np.divide(self.counted, totals, out=np.zeros_like(self.counted), where=totals > 0)

    def matrices(self):
        return np.einsum("cnso,nsi->cnoi", self.gradients, self.inputs)

    def squares(self, q_a, q_s):
        turned = np.einsum("po,cnoi,qi->cnpq", q_s, self.matrices(), q_a)
        return np.einsum("n,cnpq->pq", SHARES, turned**2)


def make(kind, library=NUMPY, *, s=S, slices=C, padded=False, seed=0):
    """Return what a layer saw, and the same on the host."""
    rng = np.random.default_rng(seed)
    counted = np.ones((N, s))
    if padded:
        counted = (np.arange(s) < rng.integers(0, s + 1, N)[:, None]).astype(float)
        counted[0] = 0.0  # a point may be nothing but padding
    g = rng.standard_normal((slices, N, s, O)) * counted[:, :, None]
    mask = library.array(counted) if padded else None
    arrays = library.array(g), mask
    if kind == "free":
        return FreeSeen(*arrays), Truth(np.ones((N, s, 1)), g, counted)
    if kind == "lookup":
        indices = rng.integers(0, I - 1, (N, s))  # the last one is asked for by nobody
        truth = Truth(np.eye(I)[indices], g, counted)
        return LookupSeen(*arrays, library.array(indices), I), truth
    a = rng.standard_normal((N, s, I))
    return AffineSeen(*arrays, library.array(a)), Truth(a, g, counted)


def bases(kind, library, dense=True, seed=5):
    """Return orthonormal bases, and the same on the host; a lookup has none for its inputs."""
    rng = np.random.default_rng(seed)
    q_a, q_s = (np.linalg.qr(rng.standard_normal((f, f)))[0] for f in (I, O))
    own = library.array(q_a) if kind == "affine" and dense else None
    q_a = q_a if own is not None else np.eye(1 if kind == "free" else I)
    return Bases(own, library.array(q_s) if dense else None), q_a, q_s if dense else np.eye(O)


def close(library, got, want):
    library.close(got, want, 1e-11 if library.dtype == "float64" else 1e-5)


def diagonals(matrix, dense):
    return matrix if dense else np.diag(matrix)


@kinds
@sharings
@paddings
@positions
@pytest.mark.parametrize("dense", [False, True])
def test_moments(library, kind, reduce, padded, s, dense):
    seen, truth = make(kind, library, s=s, padded=padded)
    shares = library.array(SHARES)
    a, g, means = truth.inputs, truth.gradients, truth.means()
    if reduce:
        mean = np.einsum("ns,nsi->ni", means, a)
        inputs = np.einsum("n,ni,nj->ij", SHARES, mean, mean)
    else:
        inputs = np.einsum("n,ns,nsi,nsj->ij", SHARES, means, a, a)
    if kind == "free":
        inputs = np.full((1, 1), SHARES.sum())
    if reduce or kind == "free":
        g = g.sum(axis=2, keepdims=True)
    outputs = np.einsum("n,cnso,cnsp->op", SHARES, g, g)
    dense_inputs = dense and kind == "affine"
    got = seen.input_moment(shares, reduce, dense_inputs)
    close(library, got, diagonals(inputs, dense_inputs))
    close(library, seen.output_moment(shares, reduce, dense), diagonals(outputs, dense))


def test_the_input_factor_of_a_lookup_is_diagonal():
    """The reference above has nothing beside the diagonal, so that none of it is lost."""
    _, truth = make("lookup")
    moment = np.einsum("n,ns,nsi,nsj->ij", SHARES, truth.means(), truth.inputs, truth.inputs)
    np.testing.assert_array_equal(moment, np.diag(np.diag(moment)))


@kinds
@paddings
@positions
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("entries", [1, 80, 10**6])
def test_mean_squares(library, kind, padded, s, dense, entries, monkeypatch):
    """Gradients are summed over the positions before they are squared; equal indices too."""
    monkeypatch.setattr("influence_core.layers.seen._ENTRIES", entries)
    monkeypatch.setattr("influence_core.layers.lookup._ENTRIES", entries)
    seen, truth = make(kind, library, s=s, padded=padded)
    pair, q_a, q_s = bases(kind, library, dense)
    got = seen.mean_squares(library.array(SHARES), pair)
    close(library, got, truth.squares(q_a, q_s))


def test_equal_indices_of_a_point_are_summed_first():
    """Two positions with opposite gradients at the same index leave nothing."""
    g = np.ones((1, 1, 2, 3)) * np.array([1.0, -1.0])[None, None, :, None]
    same = LookupSeen(g, None, np.array([[4, 4]]), 6)
    other = LookupSeen(g, None, np.array([[4, 5]]), 6)
    assert not same.mean_squares(np.ones(1), Bases()).any()
    assert other.mean_squares(np.ones(1), Bases()).sum() == 6.0


@kinds
@positions
def test_matrices(library, kind, s):
    seen, truth = make(kind, library, s=s)
    pair, q_a, q_s = bases(kind, library)
    for c in range(C):
        want = truth.matrices()[c]
        close(library, seen.matrices(c), want)
        turned = np.einsum("po,noi,qi->npq", q_s, want, q_a)
        close(library, seen.turned(pair, c), turned)
        close(library, seen.in_bases(pair).matrices(c), turned)
        close(library, pair.turn(seen.matrices(c)), turned)
        close(library, pair.turn_back(pair.turn(seen.matrices(c))), want)


@positions
@pytest.mark.parametrize("kind", ["affine", "free"])
@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("entries", [1, 80, 10**6])
def test_products(library, kind, s, k, entries):
    seen, truth = make(kind, library, s=s, slices=1)
    width = truth.inputs.shape[2]
    x = np.random.default_rng(1).standard_normal((k, O, width))
    others = library.array(x)
    want = np.einsum("koi,nso,nsi->kns", x, truth.gradients[0], truth.inputs)
    close(library, seen.products(others, entries), want.sum(axis=2))
    close(library, seen.products_by_position(others, entries), want)


def test_narrow_outputs_and_narrow_inputs(library):
    """The order of the two products follows the shorter side."""
    rng = np.random.default_rng(0)
    for o, i in ((2, 9), (9, 2)):
        a, g = rng.standard_normal((N, S, i)), rng.standard_normal((1, N, S, o))
        seen = AffineSeen(library.array(g), None, library.array(a))
        x = rng.standard_normal((3, o, i))
        got = seen.products_by_position(library.array(x), 10**6)
        close(library, got, np.einsum("koi,nso,nsi->kns", x, g[0], a))


@positions
def test_matches_of_lookups(library, s):
    seen, truth = make("lookup", library, s=s, slices=1)
    solved, other = make("lookup", library, s=3, slices=2, seed=4)
    want = np.einsum(
        "rkto,ktv,nso,nsv->rkns",
        other.gradients,
        other.inputs,
        truth.gradients[0],
        truth.inputs,
    )
    assert len(list(solved.points())) == N
    for k, point in enumerate(solved.points()):
        close(library, seen.matches(point), want[:, k])


@kinds
@positions
@pytest.mark.parametrize("entries", [1, 80, 10**6])
def test_self_products(library, kind, s, entries):
    seen, truth = make(kind, library, s=s, slices=1)
    pair, q_a, q_s = bases(kind, library)
    weights = np.random.default_rng(2).uniform(0.1, 2.0, (O, truth.inputs.shape[2]))
    turned = np.einsum("po,noi,qi->npq", q_s, truth.matrices()[0], q_a)
    want = np.einsum("oi,noi->n", weights, turned**2)
    close(library, seen.self_products(library.array(weights), pair, entries), want)


@kinds
def test_parts_and_magnitudes(library, kind):
    seen, truth = make(kind, library, padded=True)
    part = seen.part(2, 5)
    close(library, part.matrices(1), truth.matrices()[1, 2:5])
    close(library, part.mean_weights(), truth.means()[2:5])
    want = np.einsum("nso,nsi->noi", np.abs(truth.gradients[0]), np.abs(truth.inputs))
    close(library, seen.absolute().matrices(), want)
    assert (seen.size, seen.positions, seen.outputs) == (N, S, O)


@kinds
def test_other_numbers(float64_library, kind):
    short_library = dataclasses.replace(float64_library, dtype="float32")
    long, short = (each.array(SHARES) for each in (float64_library, short_library))
    seen, _ = make(kind, float64_library, padded=True)
    assert seen.cast(long.dtype) is seen
    cast = seen.cast(short.dtype)
    assert cast.mean_squares(short, Bases()).dtype == short.dtype
    assert cast.input_moment(short, True, False).dtype == short.dtype
    pair, _, _ = bases(kind, float64_library)  # of other numbers than what is seen
    assert cast.turned(pair).dtype == short.dtype


def test_numbers_of_statistics():
    affine = LayerStatistics(np.zeros((2, 3, 4)), np.zeros((5, 2, 3, 6)))
    lookup = LayerStatistics(np.zeros((2, 3), int), np.zeros((5, 2, 3, 6)))
    assert numbers_of({"a": affine}) == 2 * 3 * 4 + 5 * 2 * 3 * 6
    assert numbers_of({"a": affine, "b": lookup}) == 204 + 6 + 180 + 2 * 3**2


@pytest.mark.parametrize("size", [1, 5, 2000])
@pytest.mark.parametrize("count", [0, 1, 700])
def test_sums_by_index(library, size, count, monkeypatch):
    monkeypatch.setattr("influence_core.arrays.indexing._ENTRIES", 3000)  # some sums at a time
    rng = np.random.default_rng(0)
    indices, rows = rng.integers(0, size, count), rng.standard_normal((count, 3))
    want = np.zeros((size, 3))
    for index, row in zip(indices, rows, strict=True):
        want[index] += row
    for sums in (sum_by_index, _by_masks):
        given = library.array(rows)
        close(library, sums(library.array(indices), given, size), want)
        close(library, given, rows)
