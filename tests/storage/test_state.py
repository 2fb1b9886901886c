"""State as JSON and arrays, and back."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from namespaces import NUMPY, STRICT_FLOAT32, TORCH

from influence_core.arrays import exchange_for
from influence_core.storage.state import Packer, Surroundings, Unpacker


@dataclass(frozen=True)
class Held:
    """What holds an array."""

    array: Any


def there_and_back(value, like):
    at = Surroundings(None, (), exchange_for(like, None), None, like)
    packer = Packer(at)
    node = json.loads(json.dumps(packer.pack(value, "value"), allow_nan=False))
    assert all(array.flags.c_contiguous for array in packer.arrays.values())
    return Unpacker(packer.arrays.__getitem__, (), at).unpack(node), node


ORDERS = {
    "rows": lambda a: a,
    "columns": lambda a: a.transpose(1, 0, 2),
    "reversed": lambda a: a.transpose(2, 1, 0),
    "turned": lambda a: a.transpose(1, 2, 0),
    "one row": lambda a: a[:1].transpose(2, 0, 1),
    "empty": lambda a: a[:0],
}


def strides(array):
    """Of the axes that are gone along."""
    return [step for step, size in zip(array.strides, array.shape, strict=True) if size > 1]


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_in_memory_is_kept(order):
    before = ORDERS[order](np.arange(24.0).reshape(2, 3, 4))
    after, _ = there_and_back(Held(before), np.zeros(()))
    assert np.array_equal(after.array, before)
    assert strides(after.array) == strides(np.array(before))
    assert after.array.flags.c_contiguous == before.flags.c_contiguous


@pytest.mark.skipif(not TORCH.installed, reason="torch is not installed")
def test_the_order_in_memory_is_kept_by_torch():
    import torch

    before = torch.arange(6.0).reshape(2, 3).mT
    after, _ = there_and_back(Held(before), torch.zeros(()))
    assert torch.equal(after.array, before)
    assert after.array.stride() == before.stride() == (1, 3)


@pytest.mark.parametrize("library", [NUMPY, STRICT_FLOAT32], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1, 1), (5,)])
def test_shapes(library, shape):
    before = library.array(np.ones(shape))
    after, node = there_and_back([before, (before,)], library.array(0.0))
    assert np.array_equal(library.host(after[0]), np.ones(shape))
    assert np.array_equal(library.host(after[1][0]), np.ones(shape))
    assert node[0]["shape"] == list(shape)


def test_paths_that_look_alike():
    value = {"a": {"b": np.zeros(1)}, "a/b": np.ones(1)}
    after, _ = there_and_back(value, np.zeros(()))
    assert (after["a"]["b"][0], after["a/b"][0]) == (0, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_another_precision_than_the_models(dtype):
    before = np.linspace(0, 1, 5).astype(dtype)
    for like in (np.zeros((), "float32"), np.zeros(())):
        after, _ = there_and_back(before, like)
        assert after.dtype == dtype
        assert np.array_equal(after, before)


def test_what_gives_the_dtype_is_not_stored():
    like = np.zeros(3)
    after, node = there_and_back(Held(like), like)
    assert after.array is like
    assert node["array"] == {"reference": "reference"}


@pytest.mark.parametrize(
    "value",
    [0, -1, 2**80, True, None, "", "ü\n'\"", 0.1, 1e-320, -0.0, 1.0, [], (), {}, {(1, 2): [None]}],
)
def test_scalars_and_structures(value):
    after, _ = there_and_back(value, np.zeros(()))
    assert repr(after) == repr(value)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_json_has_no_number_for(value):
    after, _ = there_and_back([value], np.zeros(()))
    assert repr(after) == repr([float(value)])
