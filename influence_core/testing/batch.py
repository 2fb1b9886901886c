"""The points of a closed form: what a loader may yield, and the checks of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_core.arrays import is_array, matching, namespace, read_flag
from influence_core.errors import DataError, DataTypeError
from influence_core.problem import Array
from influence_core.testing.losses import Loss


@dataclass(frozen=True)
class ClosedFormBatch:
    """Some points, checked and on the model's device.

    Attributes:
        x: `(n, *)`.
        targets: `(n, o)`: `y`, or one-hot rows for labels.
        weights: `(n,)`, or None for ones.
    """

    x: Array
    targets: Array
    weights: Array | None = None

    @property
    def size(self) -> int:
        """Number of points `n`."""
        return int(self.x.shape[0])

    def __getitem__(self, points: slice) -> ClosedFormBatch:
        """Return the points of a slice along the first axis."""
        points = slice(*points.indices(self.size))  # the standard allows no end beyond the axis
        weights = None if self.weights is None else self.weights[points]
        return ClosedFormBatch(self.x[points, ...], self.targets[points, ...], weights)


def make_batch(data: Any, loss: Loss, outputs: int, weight: Array) -> ClosedFormBatch:
    """Check the types and shapes of `(x, y)` or `(x, y, weights)` and make arrays of them.

    Args:
        data: what a loader yields.
        loss: checks `y`.
        outputs: the number `o` of the model's outputs.
        weight: of the first layer, `(…, i)`; gives library, dtype and device.

    Raises:
        DataError: no points, lengths that differ, shapes that do not fit the model.
        DataTypeError: `x` is not floating-point, or labels are not integers.
    """
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise DataError(
            "`batch(data)`: `data` must be `(x, y)` or `(x, y, weights)`; got "
            f"{type(data).__name__}. Let the loader yield pairs."
        )
    x = _features(data[0], weight)
    targets = loss.targets(data[1], outputs, weight)
    weights = matching(data[2], weight) if len(data) == 3 else None
    _check_lengths(x, targets, weights)
    return ClosedFormBatch(x, targets, weights)


def check_numbers(batch: ClosedFormBatch, loss: Loss, where: str) -> None:
    """Check the numbers of a batch; this reads the device.

    Raises:
        DataError: a number is not finite, a label is no class, a weight is negative.
    """
    xp = namespace(batch.x)
    _require(xp.all(xp.isfinite(batch.x)), where, "`x`", "hold finite numbers")
    admitted, rule = loss.check(batch.targets)
    _require(admitted, where, "`y`", rule)
    if batch.weights is not None:
        fine = xp.all(xp.isfinite(batch.weights) & (batch.weights >= 0))
        _require(fine, where, "`weights`", "hold finite numbers, zero or more")


def _features(x: Any, weight: Array) -> Array:
    x = x if is_array(x) else np.asarray(x)
    if not namespace(x).isdtype(x.dtype, "real floating"):
        raise DataTypeError(
            f"`batch((x, y))`: `x` must be of a real floating-point type, so that it has a "
            f"derivative; got {x.dtype}. Cast it."
        )
    inputs = weight.shape[1]
    if x.ndim == 0 or math.prod(x.shape[1:]) != inputs:
        raise DataError(
            f"`batch((x, y))`: `x` must be (n, *) with {inputs} numbers a point; got the "
            f"shape {tuple(x.shape)}. Reshape it, or pass the data of this model."
        )
    return matching(x, weight)


def _check_lengths(x: Array, targets: Array, weights: Array | None) -> None:
    lengths = {"x": x.shape[0], "y": targets.shape[0]}
    if weights is not None:
        lengths["weights"] = weights.shape[0] if weights.ndim == 1 else tuple(weights.shape)
    if lengths["x"] == 0 or len(set(lengths.values())) > 1:
        raise DataError(
            f"`batch(data)`: all arrays must have the same first axis, of one point or more; got "
            f"{lengths}. Check what the loader yields."
        )


def _require(holds: Array, where: str, argument: str, rule: str) -> None:
    if not read_flag(holds):
        raise DataError(
            f"`{where}`: {argument} must {rule}; some do not. Clean or drop those points."
        )
