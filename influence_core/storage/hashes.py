"""Content hashes: of arrays by name, of data whatever its batches, and of settings.

All are SHA-256 over what counts: names, dtypes, shapes and bytes, in little-endian order. Where an
array lies, and which library holds it, does not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import is_array, namespace, to_host
from influence_core.errors import DataError, DataTypeError
from influence_core.problem import Array, Tree

Host = npt.NDArray[Any]


def hash_arrays(named: Mapping[str, Array]) -> str:
    """Return the hash of some arrays: of names, dtypes, shapes and numbers, in their order."""
    return hash_json([[name, hash_array(array)] for name, array in named.items()])


def hash_array(array: Array) -> str:
    """Return the hash of the dtype, the shape and the numbers of an array of any library.

    Raises:
        DataTypeError: it holds objects instead of numbers or strings.
    """
    host = _host(array)
    return hash_json([host.dtype.str, list(host.shape), hashlib.sha256(_bytes(host)).hexdigest()])


def hash_json(value: Any) -> str:
    """Return the hash of what JSON can say; the order of the keys of an object does not count.

    Raises:
        TypeError: it holds something that JSON cannot say.
        ValueError: it holds NaN or infinity.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


class DataHash:
    """The hash of points in their order, however they are cut into batches.

    Every leaf of the trees is one stream of bytes over all points, so that neither the size nor the
    number of the batches counts. Another order of the points is other data.

    Example:
        >>> whole, cut = DataHash(), DataHash()
        >>> x, y = np.arange(6.0).reshape(3, 2), np.arange(3)
        >>> whole.update(x, y)
        >>> cut.update(x[:2], y[:2])
        >>> cut.update(x[2:], y[2:])
        >>> whole.hexdigest() == cut.hexdigest()
        True
    """

    def __init__(self) -> None:
        """Start without points."""
        self._points = 0
        self._streams: dict[str, _Stream] = {}

    @property
    def points(self) -> int:
        """The number of points so far."""
        return self._points

    def update(self, *trees: Tree) -> None:
        """Add a batch of points.

        Args:
            *trees: `x` and `y`, say: arrays with the points along their first axis, or dicts,
                tuples and lists of such. None is a tree without leaves.

        Raises:
            DataError: there are no points, or the lengths differ.
            DataTypeError: a leaf is a number by itself, or holds objects.
        """
        leaves = {path: _host(leaf) for path, leaf in _leaves(trees, "")}
        lengths = {_length(path, leaf) for path, leaf in leaves.items()}
        if len(lengths) != 1 or 0 in lengths:
            raise DataError(
                "`DataHash.update` needs arrays with one number of points, at least one, along the "
                f"first axis; got {sorted(lengths)}. Pass the `x` and `y` of one batch."
            )
        for path, leaf in leaves.items():
            self._streams.setdefault(path, _Stream()).add(leaf, self._points)
        self._points += lengths.pop()

    def hexdigest(self) -> str:
        """Return the hash of the points so far."""
        streams = {path: stream.described() for path, stream in self._streams.items()}
        return hash_json([self._points, streams])


class _Stream:
    """The bytes of one leaf, point after point."""

    def __init__(self) -> None:
        self._bytes = hashlib.sha256()
        self._end = 0
        # first point, dtype and shape of a point, wherever one of these changes
        self._runs: list[list[Any]] = []

    def add(self, leaf: Host, first: int) -> None:
        form = [leaf.dtype.str, list(leaf.shape[1:])]
        if not self._runs or self._runs[-1][1:] != form or self._end != first:
            self._runs.append([first, *form])
        self._bytes.update(_bytes(leaf))
        self._end = first + leaf.shape[0]

    def described(self) -> list[Any]:
        return [self._runs, self._end, self._bytes.hexdigest()]


def _leaves(tree: Tree, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from _leaves(child, f"{path}[{key!r}]")
    elif isinstance(tree, tuple | list):
        for index, child in enumerate(tree):
            yield from _leaves(child, f"{path}[{index}]")
    elif tree is not None:
        yield path, tree


def _length(path: str, leaf: Host) -> int:
    if leaf.ndim == 0:
        raise DataTypeError(
            f"`DataHash.update` needs points along the first axis; the leaf {path} is {leaf.dtype} "
            "without an axis. Pass arrays of the points of a batch."
        )
    return int(leaf.shape[0])


def _host(array: Any) -> Host:
    """Return the numbers as a contiguous little-endian array on the host."""
    host = _on_host(array) if is_array(array) else np.asarray(array)
    if host.dtype.hasobject:
        raise DataTypeError(
            f"content can be hashed of numbers and strings; got {type(array).__name__} of dtype "
            f"{host.dtype}. Encode it as numbers first."
        )
    little = host.astype(host.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(host.shape)  # which makes (1,) of ()


def _bytes(host: Host) -> Any:
    """Return the bytes of a contiguous array, without a copy."""
    return host.reshape(-1).view(np.uint8) if host.size else b""


def _on_host(array: Array) -> Host:
    try:
        return to_host(array)
    except TypeError:  # NumPy has no such numbers, bfloat16 say; float32 has all of them
        return to_host(namespace(array).astype(array, namespace(array).float32))
