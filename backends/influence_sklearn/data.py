"""What the estimators take as data, as arrays of the library that is computed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import is_array, matching, namespace, to_host
from influence_core.errors import DataError, DataTypeError
from influence_core.problem import Array

# so many labels that the estimator does not know are shown
_SHOWN = 5


@dataclass(frozen=True)
class Weighted:
    """Targets of weighted points, to stand for `y` where a call takes `x` and `y` only.

    Attributes:
        y: targets, as the estimator takes them.
        sample_weight: `(n,)`, or None for ones.
    """

    y: Any
    sample_weight: Any = None


def unpack(data: Any) -> tuple[Any, Any, Any]:
    """Return `X`, `y` and the weights (or None) of what a loader yields.

    Raises:
        DataError: it is none of `(X, y)`, `(X, Weighted(y, w))` and `(X, y, w)`.
    """
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise DataError(
            "`batch(data)`: `data` must be `(X, y)` or `(X, y, sample_weight)`; got "
            f"{type(data).__name__}. Pass a list of such batches: `fit([(X, y)])`."
        )
    features, y, weights = (*data, None)[:3]
    if isinstance(y, Weighted):
        if weights is not None:
            raise DataError(
                "`batch(data)`: weights may be given once; got `Weighted` and a third array. "
                "Leave one out."
            )
        y, weights = y.y, y.sample_weight
    return features, y, weights


def in_parts(data: Sequence[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """Yield so many points at a time of arrays, data frames, sparse matrices or lists; or of None.

    Args:
        data: all of the length that the first one has.
        size: the most points of a part.
    """
    first = data[0]
    points = first.shape[0] if hasattr(first, "shape") else len(first)
    if points <= size:
        yield tuple(data)
        return
    for start in range(0, points, size):
        part = slice(start, min(start + size, points))
        yield tuple(None if each is None else _rows(each, part) for each in data)


def features(data: Any, names: Sequence[str] | None, like: Array) -> Array:
    """Return `X`, `(n, i)`; what is sparse is made dense.

    Args:
        data: an array of any library, a data frame, a sparse matrix or nested numbers.
        names: of the columns that the estimator was fitted with; None where they had none.
        like: `(o, i)`; gives library, dtype, device and the number of features.

    Raises:
        DataTypeError: these are no real numbers.
        DataError: the shape or the names of the columns are not those of the fit.
    """
    _check_columns(data, names)
    x = numbers(data.toarray() if hasattr(data, "toarray") else data, "X", like)
    if x.ndim != 2 or x.shape[1] != like.shape[1]:
        raise DataError(
            f"`X` must be (n, {like.shape[1]}), the features that the estimator was fitted with; "
            f"got the shape {tuple(x.shape)}. Pass the same columns."
        )
    return x


def numbers(data: Any, name: str, like: Array) -> Array:
    """Return real numbers as an array like `like`; `name` stands in the message.

    Raises:
        DataTypeError: these are no real numbers.
    """
    array = data if is_array(data) else np.asarray(data)
    try:
        if namespace(array).isdtype(array.dtype, "complex floating"):
            raise TypeError(f"the dtype is {array.dtype}")
        return matching(array, like)
    except (TypeError, ValueError) as error:
        raise DataTypeError(
            f"`{name}` must hold real numbers; got {type(data).__name__}: {error}. Encode or cast "
            "it, for instance in a pipeline."
        ) from error


def on_host(value: Any) -> npt.NDArray[Any]:
    """Return an array of any library, or nested values, as a NumPy array."""
    return to_host(value) if is_array(value) else np.asarray(value)


def labels(y: Any, classes: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Return the places of the labels among the classes, `(n,)`.

    Raises:
        DataError: `y` is not `(n,)`, or has a label that the estimator was not fitted with.
    """
    host = on_host(y)
    if host.ndim != 1:
        raise DataError(
            f"`y` must be (n,), a label a point; got the shape {host.shape}. Pass labels, not "
            "one-hot rows; `numpy.ravel(y)` makes one axis of a column."
        )
    places = {label: place for place, label in enumerate(classes)}
    found = [places.get(label, -1) for label in host.tolist()]
    unknown = {label: None for label, place in zip(host.tolist(), found, strict=True) if place < 0}
    if unknown:
        more = ", …" if len(unknown) > _SHOWN else ""
        raise DataError(
            f"`y` must hold labels that the estimator was fitted with, {list(classes)}; got "
            f"{', '.join(map(repr, list(unknown)[:_SHOWN]))}{more}. Drop those points."
        )
    return np.asarray(found, dtype=np.int64)


def columns(y: Any, outputs: int, like: Array) -> Array:
    """Return the targets of a regression, `(n, o)`; with one target, `(n,)` is a column.

    Raises:
        DataTypeError: these are no real numbers.
        DataError: the shape is another.
    """
    targets = numbers(y, "y", like)
    if targets.ndim == 1 and outputs == 1:
        targets = targets[:, None]
    if targets.ndim != 2 or targets.shape[1] != outputs:
        wanted = "(n,) or (n, 1)" if outputs == 1 else f"(n, {outputs})"
        raise DataError(
            f"`y` must be {wanted}, as the estimator was fitted; got the shape "
            f"{tuple(targets.shape)}."
        )
    return targets


def _rows(data: Any, points: slice) -> Any:
    if hasattr(data, "iloc"):
        return data.iloc[points]
    if hasattr(data, "tocsr"):
        data = data.tocsr()
    return data[points, ...] if is_array(data) else data[points]


def _check_columns(data: Any, names: Sequence[str] | None) -> None:
    if names is None or not hasattr(data, "columns"):
        return
    got = [str(name) for name in data.columns]
    if got != list(names):
        raise DataError(
            f"`X` must have the columns that the estimator was fitted with, {list(names)}, in this "
            f"order; got {got}. Select them: `X[list(estimator.feature_names_in_)]`."
        )
