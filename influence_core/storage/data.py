"""The identity of training data: what a method that reads it again is held to.

The points count in their order, not the batches that they come in; those count only where a
method's answers depend on them. Whether loss and model are those of the fit shows in the gradient
of the objective, which is computed anew in the same pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import groupby
from typing import Any

from influence_core.arrays import namespace, read_float
from influence_core.errors import CapabilityError, DataError, DataTypeError, ModelError
from influence_core.objective import Objective
from influence_core.optimality import Gauge, Optimality
from influence_core.problem import Array, Batch, Problem
from influence_core.storage.hashes import DataHash

# how far the gradient of the same objective may move by rounding, relative to that of a point
_ROUNDING = 1e-3


class Points:
    """The identity of the points of some batches."""

    def __init__(self) -> None:
        """Start without points."""
        self._hash = DataHash()
        self._sizes: list[int] = []

    def see(self, batch: Batch) -> None:
        """Add the points of a batch.

        Raises:
            CapabilityError: the batches of the backend are no dataclasses.
        """
        self._hash.update(_arrays(batch))
        self._sizes.append(batch.size)

    def described(self) -> dict[str, Any]:
        """Return the hash of the points, and the sizes of the batches as `[count, size]`."""
        sizes = [[len(list(group)), size] for size, group in groupby(self._sizes)]
        return {"sha256": self._hash.hexdigest(), "batch_sizes": sizes}


class NoData:
    """Stands for data that was not passed, where the state needs none."""

    def __iter__(self) -> Iterator[Any]:
        """Refuse.

        Raises:
            DataError: always.
        """
        raise DataError(
            "this instance was loaded without its training data, which its method does not need; "
            "what was asked of it does. Call `fit(data)`."
        )


def describe(objective: Objective, *, hashed: bool) -> dict[str, Any]:
    """Return the numbers of points and batches, and with `hashed` their content: one pass."""
    found = {
        "points": objective.points,
        "weight": objective.weight,
        "batches": objective.batch_count,
    }
    if not hashed:
        return found
    points = Points()
    for batch in objective.batches():
        points.see(batch)
    return found | points.described()


def without_data(problem: Problem, saved: Mapping[str, Any]) -> Objective:
    """Return the objective of state that needs its data no more."""
    return Objective(problem, NoData(), saved["points"], saved["weight"], saved["batches"])


def read_again(
    problem: Problem,
    data: Any,
    saved: Mapping[str, Any],
    optimality: Optimality,
    where: str,
) -> Objective:
    """Return the objective over `data`, after one pass that compares it with the saved one.

    Args:
        problem: the model and loss.
        data: what the user passed.
        saved: what `describe` returned with `hashed`, and whether `batches_matter`.
        optimality: what was saved of the gradient of the objective.
        where: the call, for messages.

    Raises:
        DataError: no data was passed, other data, or other batches where they matter.
        DataTypeError: it can be iterated once only, or not at all.
        ModelError: the gradient of the objective is another.
    """
    if data is None:
        raise DataError(
            f"`{where}` needs the training data again, which this method reads in every solve: "
            f"{_counted(saved)}. Pass it: `data=loader`."
        )
    points, gauge = Points(), Gauge(problem, optimality.blocks)

    def see(batch: Batch) -> None:
        points.see(batch)
        gauge.see(batch)

    try:
        objective = Objective.of(problem, data, see)
    except (DataError, DataTypeError) as error:
        raise type(error)(f"`{where}` reads `data` as `fit` does: {error}") from error
    present = describe(objective, hashed=False) | points.described()
    _compare(saved, present, where)
    _check_gradient(gauge.reading(objective.points, objective.weight), optimality, where)
    return objective


def _compare(saved: Mapping[str, Any], present: Mapping[str, Any], where: str) -> None:
    if any(saved[what] != present[what] for what in ("points", "sha256")):
        raise DataError(
            f"`{where}` needs the data that was fitted, {_counted(saved)}; got "
            f"{_counted(present)}. Pass the same points in the same order: a loader that shuffles "
            "yields another one each time."
        )
    if saved["batches_matter"] and saved["batch_sizes"] != present["batch_sizes"]:
        raise DataError(
            f"`{where}` needs the batches that were fitted, for a step of this method is a batch: "
            f"{_cut(saved)}; got {_cut(present)}. Pass the points in batches of the same sizes."
        )


def _check_gradient(present: Optimality, saved: Optimality, where: str) -> None:
    gap = present.gradient - saved.gradient
    distance = read_float(namespace(gap).linalg.vector_norm(gap))
    if not distance <= _ROUNDING * max(saved.length, present.length):
        raise ModelError(
            f"`{where}`: with this model and loss, the gradient of the mean loss over the data is "
            f"off by {distance:.2e} from the fitted one, where that of a point has a length of "
            f"{saved.length:.2e}. Pass the loss, the frozen parameters and the code of the fit."
        )


def _arrays(batch: Any) -> dict[str, Array]:
    if not is_dataclass(batch):
        raise CapabilityError(
            "a method that reads its data again is saved with a hash of its points, the fields of "
            f"the batches; {type(batch).__name__} is no dataclass. Its backend needs one."
        )
    found = {each.name: getattr(batch, each.name) for each in fields(batch)}
    return {name: value for name, value in found.items() if not isinstance(value, int | None)}


def _counted(of: Mapping[str, Any]) -> str:
    return f"{of['points']} points in {of['batches']} batches (sha256 {of['sha256'][:12]}…)"


def _cut(of: Mapping[str, Any]) -> str:
    return " and then ".join(f"{count} of {size} points" for count, size in of["batch_sizes"])
