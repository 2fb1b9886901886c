"""The room of the array libraries: crossings, random numbers, trees, small dense algebra."""

from typing import NamedTuple

import array_api_strict
import numpy as np
import pytest
from namespaces import NUMPY, STRICT, STRICT_DEVICE, STRICT_FLOAT32

from influence_core.arrays import (
    concatenate_trees,
    eigh,
    from_host,
    map_tree,
    masked_reciprocal,
    matching,
    normal_rows,
    rademacher_rows,
    row_dots,
    row_norms,
    singular_value_decomposition,
    supports_float64,
    symmetrize,
    to_host,
    widen,
)

draws = pytest.mark.parametrize("draw", [normal_rows, rademacher_rows])


@draws
def test_every_library_draws_the_same_numbers(library, draw):
    want = draw(7, 3, 5, np.zeros(()))
    library.close(draw(7, 3, 5, library.array(0.0)), want, 1e-7)


@draws
def test_rows_do_not_depend_on_their_number(draw):
    like = np.zeros(())
    many = draw(7, 10, 50, like)
    np.testing.assert_array_equal(many[:3], draw(7, 3, 50, like))
    assert len({row.tobytes() for row in many}) == 10
    assert np.any(many != draw(8, 10, 50, like))


@draws
def test_no_global_generator_is_touched(draw):
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - looked at, not drawn from
    first = draw(0, 2, 3, np.zeros(()))
    np.random.seed(1)  # noqa: NPY002
    again = draw(0, 2, 3, np.zeros(()))
    np.random.set_state(("MT19937", before, 624, 0, 0.0))  # noqa: NPY002
    np.testing.assert_array_equal(first, again)


def test_distributions():
    like = np.zeros(())
    assert set(np.unique(rademacher_rows(0, 4, 500, like))) == {-1.0, 1.0}
    sample = normal_rows(0, 4, 5000, like)
    assert abs(sample.mean()) < 0.03
    assert abs(sample.std() - 1) < 0.03


def test_host_and_back(library):
    host = np.arange(6.0).reshape(2, 3)
    array = from_host(host, library.array(0.0))
    library.close(array, host)
    back = to_host(array)
    assert back.dtype == library.dtype
    back[...] = 9.0  # a copy: writable, and of no array that is in use
    library.close(array, host)


def test_matching_takes_what_users_have(library):
    like, want = library.array(0.0), np.array([[1.0, 2.0]])
    for value in ([[1, 2]], want, want.astype(np.float32), STRICT.array(want), library.array(want)):
        library.close(matching(value, like), want)


def test_float64_where_there_is_some(library):
    array = library.array(np.ones(2))
    assert supports_float64(array) == (library is not STRICT_FLOAT32)
    assert str(library.dtype) in str(widen(array).dtype)
    assert supports_float64(np.ones(2, np.float32))
    assert widen(np.ones(2, np.float32)).dtype == np.float64


def test_dense_algebra(library):
    host = np.random.default_rng(0).standard_normal((4, 4))
    a = library.array(host)
    library.close(symmetrize(a), (host + host.T) / 2)
    library.close(row_norms(a), np.linalg.norm(host, axis=1))
    library.close(row_dots(a, a), np.sum(host**2, axis=1))
    values, vectors = eigh(a)
    rows = library.host(vectors)
    np.testing.assert_allclose(
        (rows.T * library.host(values)) @ rows, (host + host.T) / 2, atol=10 * library.tolerance
    )
    u, s, vt = singular_value_decomposition(a[:, :2])
    library.close(u * s @ vt, host[:, :2])
    library.close(s, np.linalg.svd(host[:, :2], compute_uv=False))


def test_masked_reciprocal_divides_by_no_zero(library):
    a = library.array([2.0, 0.0, 4.0])
    library.close(masked_reciprocal(a, a > 0), [0.5, 0.0, 0.25])


class Point(NamedTuple):
    x: object
    y: object


def test_trees_keep_their_kinds():
    tree = {"a": (1, [2, None]), "b": Point(3, 4)}
    got = map_tree(lambda a, b: a + b, tree, tree)
    assert got == {"a": (2, [4, None]), "b": Point(6, 8)}
    assert isinstance(got["b"], Point)


def test_trees_are_concatenated(library):
    a, b = library.array(np.ones((1, 2))), library.array(np.zeros((2, 2)))
    got = concatenate_trees([{"x": (a,)}, {"x": (b,)}], axis=0)
    library.close(got["x"][0], np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))
    assert concatenate_trees([a], axis=0) is a


def test_libraries_are_told_apart():
    assert isinstance(STRICT_DEVICE.array(0.0), type(array_api_strict.asarray(0.0)))
    with pytest.raises(TypeError):
        row_dots(NUMPY.array(np.ones((1, 2))), STRICT.array(np.ones((1, 2))))
