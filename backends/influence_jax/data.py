"""Batches of JAX or NumPy arrays: checked, copied to the parameters' device, never rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_leaves_with_path

from influence_core.errors import DataError, DataTypeError
from influence_jax.precision import ENABLE, check_precision

_PAIRS = "Pass a list of (x, y) batches, such as [(x, y)], or a loader of pairs."


@dataclass(frozen=True)
class JaxBatch:
    """`n` points: inputs and targets, each an array or a tree of arrays."""

    x: Any
    y: Any
    size: int
    weights: None = None

    def __getitem__(self, points: slice) -> JaxBatch:
        """Return the points of a slice."""
        x, y = (jax.tree.map(lambda t: t[points], tree) for tree in (self.x, self.y))
        return JaxBatch(x, y, len(range(self.size)[points]))


def make_batch(data: Any, device: Any, half_to: Any) -> JaxBatch:
    """Check an `(x, y)` pair and bring it to `device`.

    Args:
        data: the pair.
        device: where to.
        half_to: the dtype that floating-point data is cast to; None leaves it as it is.

    Raises:
        DataTypeError: it is no pair, holds something else than arrays of JAX or NumPy, or numbers
            that JAX would round.
        DataError: the lengths differ or are zero.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise DataTypeError(f"a batch must be a pair (x, y); got {_described(data)}. {_PAIRS}")
    lengths = [*_lengths(data[0], "x"), *_lengths(data[1], "y")]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise DataError(
            "`x` and `y` must have the same number of points, at least one, along the first axis; "
            f"got {lengths[0]} and {', '.join(map(str, lengths[1:]))}. {_PAIRS}"
        )
    x, y = (jax.tree.map(lambda t: _moved(t, device, half_to), tree) for tree in data)
    return JaxBatch(x, y, lengths[0])


def check_finite(batch: JaxBatch, where: str) -> None:
    """Raise `DataError` if a floating-point leaf holds NaN or infinity."""
    for path, leaf in [*_leaves(batch.x, "x"), *_leaves(batch.y, "y")]:
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            wrong = ~np.isfinite(np.asarray(leaf, dtype=np.complex128)).reshape(batch.size, -1)
            rows = np.flatnonzero(wrong.any(axis=1))[:5].tolist()
            raise DataError(
                f"`{where}`: {path} holds NaN or infinity, first in the points {rows}. "
                "Clean or drop these points."
            )


def without_none(tree: Any) -> Any:
    """Return `tree` without the entries of dicts that are None; in tuples they stay."""
    if isinstance(tree, Mapping):
        parts = {key: without_none(child) for key, child in tree.items()}
        return {key: part for key, part in parts.items() if part is not None}
    if isinstance(tree, tuple | list):
        found = [without_none(child) for child in tree]
        return type(tree)(*found) if hasattr(tree, "_fields") else type(tree)(found)
    return tree


def shown(tree: Any) -> Any:
    """Return shapes and dtypes of the leaves, for a message."""
    return jax.tree.map(
        lambda t: f"{tuple(t.shape)} {t.dtype}" if hasattr(t, "shape") else type(t).__name__, tree
    )


def _leaves(tree: Any, path: str) -> list[tuple[str, Any]]:
    return [(path + keystr(keys), leaf) for keys, leaf in tree_leaves_with_path(tree)]


def _lengths(tree: Any, path: str) -> list[int]:
    found = []
    for where, leaf in _leaves(tree, path):
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise DataTypeError(
                f"`{where}` must be an array of JAX or NumPy (or a tree of them); got "
                f"{_described(leaf)}. Convert it with `numpy.asarray`; a loader does so in its "
                "collate function."
            )
        if leaf.ndim == 0:
            raise DataError(f"`{where}` must have the points along its first axis; got a scalar.")
        if leaf.dtype.kind in "OSUMm":
            raise DataTypeError(f"`{where}` must hold numbers; got {leaf.dtype}. Encode it first.")
        check_precision(leaf.dtype, f"`{where}`", "cast it to float32")
        found.append(leaf.shape[0])
    if not found:
        raise DataError(f"`{path}` must hold at least one array; got {_described(tree)}.")
    return found


def _moved(array: Any, device: Any, half_to: Any) -> Array:
    if isinstance(array, jax.Array):
        moved = jax.device_put(array, device)
    else:  # a copy: the loader may write into its array again
        moved = jnp.array(_narrowed(array), copy=True, device=device)
    return moved.astype(half_to) if half_to and jnp.issubdtype(moved.dtype, jnp.floating) else moved


def _narrowed(array: np.ndarray) -> np.ndarray:
    """Return integers in 32 bits where JAX has no more, which changes none of them."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize < 8 or jax.config.jax_enable_x64:
        return array
    short = np.dtype("int32" if array.dtype.kind == "i" else "uint32")
    bounds = np.iinfo(short)
    if array.size and (array.min() < bounds.min or array.max() > bounds.max):
        raise DataTypeError(
            f"integers of the data must fit into {short}, for 64-bit numbers are disabled; got "
            f"{array.min()} to {array.max()}. Call `{ENABLE}` before anything else."
        )
    return array.astype(short)


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
