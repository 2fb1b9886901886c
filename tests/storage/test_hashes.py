"""Hashes tell content apart, and nothing else."""

from collections import OrderedDict, namedtuple

import array_api_strict
import numpy as np
import pytest

from influence_core import DataError, DataTypeError
from influence_core.storage.hashes import DataHash, hash_array, hash_arrays, hash_json

X, Y = np.arange(24.0).reshape(6, 2, 2), np.arange(6)


def of(*batches):
    hashed = DataHash()
    for batch in batches:
        hashed.update(*batch)
    return hashed.hexdigest()


def cut(*sizes, x=X, y=Y):
    ends = np.cumsum(sizes)
    return [(x[e - s : e], y[e - s : e]) for s, e in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("sizes", [(6,), (1, 5), (4, 2), (2, 2, 2), (1,) * 6])
def test_batches_do_not_count(sizes):
    assert of(*cut(*sizes)) == of((X, Y))


def test_libraries_and_memory_do_not_count():
    swapped = np.asfortranarray(X), Y.astype(">i8")
    strict = array_api_strict.asarray(X), array_api_strict.asarray(Y)
    strided = np.repeat(X, 2, axis=0)[::2], Y
    assert of(swapped) == of(strict) == of(strided) == of((X, Y))


@pytest.mark.parametrize(
    "other",
    [
        (X[:5], Y[:5]),
        (X[::-1], Y),
        (X, Y[::-1]),
        (X[::-1], Y[::-1]),
        (X + np.eye(2) * 1e-15, Y),
        (X.astype(np.float32), Y),
        (X, Y.astype(np.int32)),
        (X.reshape(6, 4), Y),
        (X, Y[:, None]),
        (X,),
        (Y, X),
        (X, Y, Y),
        ({"x": X}, Y),
        ((X,), Y),
        (-X[:1] * 0.0, Y[:1]),
    ],
)
def test_everything_else_counts(other):
    assert of(other) != of((X, Y))


def test_the_keys_of_a_tree_count_and_not_their_order():
    one = {"ids": X, "mask": (Y, [X])}
    assert of((one,)) == of((OrderedDict(reversed(one.items())),))
    assert of((one,)) != of(({"ids": X, "masks": (Y, [X])},))
    pair = namedtuple("pair", "a b")
    assert of((pair(X, Y),)) == of(((X, Y),))


def test_lengths_may_change_from_batch_to_batch():
    padded = [(np.ones((2, 3)), Y[:2]), (np.ones((4, 2)), Y[:4])]
    cuts = [(np.ones((1, 3)), Y[:1]), (np.ones((1, 3)), Y[1:2]), padded[1]]
    assert of(*padded) == of(*cuts)
    assert of((np.ones((2, 4)), Y[:2]), (np.ones((2, 3)), Y[:2])) != of(
        (np.ones((2, 3)), Y[:2]), (np.ones((2, 4)), Y[:2])
    )
    assert of((np.ones((3, 2)), Y[:3]), (np.ones((2, 4)), Y[:2])) != of(
        (np.ones((5, 2)), Y[[0, 1, 2, 0, 1]])
    )


def test_where_a_leaf_is_missing_counts():
    whole, part = (X[:2], Y[:2]), (X[:2], None)
    assert of(whole, part, whole) != of(whole, whole, part)
    assert of((X, None)) == of((X, {}, []))


def test_no_number_may_move_to_another_leaf():
    assert of((Y[:3], Y[3:])) != of((Y[[0, 1, 3]], Y[[2, 4, 5]]))


def test_strings_and_dates_are_content():
    names, dates = np.array(["a", "bc"]), np.array(["2020-01-01", "2021-01-01"], "M8[D]")
    assert of((names, dates)) != of((np.array(["a", "bd"]), dates))
    assert of((names, dates)) != of((names, dates + 1))


def test_points_are_counted():
    hashed = DataHash()
    for batch in cut(4, 2):
        hashed.update(*batch)
    assert hashed.points == 6
    before = hashed.hexdigest()
    assert before == hashed.hexdigest()  # reading it changes nothing


@pytest.mark.parametrize("batch", [(X, Y[:5]), (X[:0], Y[:0]), (None, {}), ()])
def test_lengths_must_agree(batch):
    with pytest.raises(DataError, match="one number of points"):
        DataHash().update(*batch)


@pytest.mark.parametrize("leaf", [3.0, "text", np.array(1), np.array([None, object()]), object()])
def test_leaves_must_be_arrays_of_points(leaf):
    with pytest.raises(DataTypeError):
        DataHash().update(leaf)


def test_arrays_by_name():
    named = {"a": X, "b": Y}
    assert hash_arrays(named) == hash_arrays({"a": np.asfortranarray(X), "b": Y})
    assert hash_arrays(named) != hash_arrays({"b": Y, "a": X})
    assert hash_arrays(named) != hash_arrays({"a": X})
    assert hash_arrays({"a": Y, "b": X}) != hash_arrays(named)


def test_an_array_is_its_dtype_shape_and_numbers():
    zeros = [
        np.zeros(()),
        np.zeros(1),
        np.zeros((1, 1)),
        np.zeros(0),
        np.zeros((0, 3)),
        np.zeros(2),
    ]
    others = [np.zeros(2, np.float32), np.zeros(2, np.int64), -np.zeros(2), np.ones(2)]
    assert len({hash_array(array) for array in zeros + others}) == len(zeros + others)


def test_numbers_that_numpy_lacks():
    torch = pytest.importorskip("torch")
    half = torch.arange(3, dtype=torch.bfloat16)
    assert hash_array(half) == hash_array(half.clone())
    assert hash_array(half) != hash_array(half + 1)


def test_json():
    assert hash_json({"a": 1, "b": [1.5, "ü", None]}) == hash_json({"b": [1.5, "ü", None], "a": 1})
    assert len({hash_json(each) for each in (1, 1.0, "1", True, [1], {"1": 1}, None)}) == 7
    with pytest.raises(ValueError, match="Out of range"):
        hash_json(float("nan"))
    with pytest.raises(TypeError):
        hash_json(object())
