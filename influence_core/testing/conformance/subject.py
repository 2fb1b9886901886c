"""What an author hands to the kit: a model with data, and an oracle that knows its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import from_host
from influence_core.errors import DataError
from influence_core.plugins import BackendSpec, find_backend
from influence_core.problem import Array, Batch, Problem, Tree
from influence_core.testing.conformance.differences import (
    FiniteDifferences,
    flatten,
    second_derivatives,
    unflatten,
)
from influence_core.testing.conformance.oracles import Derivatives, Host, Oracle, Values
from influence_core.testing.conformance.trees import leaves, on_host, part_of

_LEAST_POINTS = 5


@dataclass(frozen=True, eq=False)
class Subject:
    """One small model that a backend serves, with all that is needed to examine the backend.

    A good subject has five to ten points, ten to forty parameters of several shapes, and
    parameters, inputs and losses near one. The checks build the problem as `Influence` does.

    Attributes:
        model: what users pass as `model`; it stays as it is.
        data: `(x, y)` as users pass them, arrays or trees of arrays with the points first.
        oracle: `FiniteDifferences`, `ClosedForm` or one of your own; the losses alone stand for
            ``FiniteDifferences(losses)``.
        loss: what users pass as `loss`; None where the backend knows it.
        parameters: reads name to value from the model, for the differentiable parameters in the
            model's order; None where they are `model.parameters`. It is asked again later, to see
            that nothing has changed.
        assign: `values ↦ None` writes other parameters into the model, as more training would,
            from NumPy arrays by name. None writes into the arrays of `parameters`, where the
            library lets one.
        state: `() ↦` what else of the model must stay as it is, by name: the mode, buffers, hooks,
            generators of random numbers. Values are numbers, words, arrays, and dicts, tuples and
            lists of them.
        backend: as for `Influence`; None finds the backend by the type of the model, which takes an
            installed entry point.
        options: further keywords of the backend.
        weighted: `(x, y, w) ↦` what a loader yields for points with weights `w`, a NumPy array
            `(n,)`; None where the backend knows no weights.
        penalty: `(parameters, weight) ↦` the penalty of the objective in NumPy, where the backend
            has one: the objective is the mean of the losses plus this number. `weight` as for
            `HasPenalty`.
        natural: whether the loss is a negative log-likelihood in the natural parameters of its
            distribution (squared error, cross-entropy of logits, Poisson with a log link): the
            Fisher matrix is then the generalised Gauss–Newton matrix.

    Raises:
        DataError: there are fewer than five points.
    """

    model: Any
    data: tuple[Tree, Tree]
    oracle: Oracle | Callable[[Values, Tree, Tree], Host]
    _: KW_ONLY
    loss: Any = None
    parameters: Callable[[], Mapping[str, Any]] | None = None
    assign: Callable[[Values], None] | None = None
    state: Callable[[], Mapping[str, Any]] | None = None
    backend: str | BackendSpec | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    weighted: Callable[[Tree, Tree, npt.NDArray[np.float64]], Any] | None = None
    penalty: Callable[[Values, float], float] | None = None
    natural: bool = True

    def __post_init__(self) -> None:
        """Copy the numbers, before any backend sees them."""
        if self.points < _LEAST_POINTS:
            raise DataError(
                f"`Subject(data=…)` needs {_LEAST_POINTS} points or more, so that they can be cut "
                f"into uneven batches; got {self.points}. Five to ten are enough."
            )
        for remembered in ("values", "first_state"):
            getattr(self, remembered)

    @cached_property
    def values(self) -> Values:
        """The parameters on the host, as they were at first."""
        return self.read_parameters()

    @cached_property
    def first_state(self) -> dict[str, Tree]:
        """What `state` told at first."""
        return self.read_state()

    @cached_property
    def host_data(self) -> tuple[Tree, Tree]:
        """`(x, y)` on the host, as they were at first."""
        return self.read_data()

    @cached_property
    def points(self) -> int:
        """Number of points `n`."""
        return len(leaves(self.host_data)[0])

    @cached_property
    def size(self) -> int:
        """Number of parameters `p`."""
        return sum(value.size for value in self.values.values())

    @property
    def names(self) -> list[str]:
        """The names of all parameters, in the model's order."""
        return list(self.values)

    @cached_property
    def selections(self) -> list[list[str]]:
        """Lists of names to ask for: all, some, one, with gaps, and in another order."""
        names = self.names
        lists = [names, names[::-1], names[1:], names[::2], names[-1:]]
        return [each for at, each in enumerate(lists) if each and each not in lists[:at]]

    @cached_property
    def many(self) -> int:
        """How many vectors are asked for mostly: more than parameters, and more than points."""
        return max(self.size, self.points) + 2

    def counts(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return how many vectors to ask for: one, some, many.

        Few of these numbers for some selections of the names: libraries that compile do so for
        every shape.
        """
        if names == self.names:
            return 1, self.many
        return (1, 3) if names == self.names[::-1] else (3,)

    @cached_property
    def truth(self) -> Derivatives:
        """The derivatives by the oracle."""
        oracle = FiniteDifferences(self.oracle) if callable(self.oracle) else self.oracle
        return oracle.derivatives(self.values, *self.host_data)

    @cached_property
    def problem(self) -> Problem:
        """The problem that most checks share."""
        return self.make()

    def make(self, **options: Any) -> Problem:
        """Return a new problem, made as `Influence` makes it."""
        factory = find_backend(self.model, self.backend).load()
        keywords = {"device": None, "max_memory": None, **self.options, **options}
        return factory(self.model, self.loss, **keywords)

    def batch(self) -> Batch:
        """Return all points."""
        return self.problem.batch(self.data)

    def part(self, start: int, stop: int) -> Batch:
        """Return the points from `start` to `stop`, made into a batch of their own."""
        return self.problem.batch(self.pair(start, stop))

    def pair(self, start: int, stop: int) -> tuple[Tree, Tree]:
        """Return `(x, y)` of the points from `start` to `stop`."""
        x, y = self.data
        return part_of(x, start, stop), part_of(y, start, stop)

    def columns(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return where the parameters `names` lie among all `p`, in the order of `names`."""
        starts, start = {}, 0
        for name, value in self.values.items():
            starts[name] = start
            start += value.size
        ranges = [np.arange(self.values[name].size) + starts[name] for name in names]
        return np.concatenate(ranges)

    def random(self, *shape: int, seed: int = 0) -> tuple[Host, Array]:
        """Return normal numbers on the host and as an array like the parameters.

        Both hold the same numbers: those that the dtype of the parameters can hold.
        """
        numbers = np.random.default_rng([seed, *shape]).standard_normal(shape)
        array = from_host(numbers, self.problem.reference)
        host: Host = on_host(array)
        return host, array

    def penalty_diagonal(self, weight: float) -> Host:
        """Return the diagonal second derivative of `penalty`, `(p,)`; zeros without one."""
        if self.penalty is None:
            return np.zeros(self.size)
        penalty, theta = self.penalty, flatten(self.values)

        def at(theta: Host) -> Host:
            return np.array([penalty(unflatten(theta, self.values), weight)])

        return np.diagonal(second_derivatives(at, theta)[0]).copy()

    def read_parameters(self) -> dict[str, Host]:
        """Return the parameters as the model has them now."""
        return {name: on_host(value) for name, value in self._parameters().items()}

    def write_parameters(self, values: Values) -> bool:
        """Write other parameters into the model, and tell whether it has them now."""
        if self.assign is not None:
            self.assign(values)
        elif not all(_overwrite(array, values[n]) for n, array in self._parameters().items()):
            return False
        now = self.read_parameters()
        return all(np.allclose(now[name], value, rtol=1e-3) for name, value in values.items())

    def read_state(self) -> dict[str, Tree]:
        """Return what `state` tells now, on the host."""
        return {} if self.state is None else on_host(self.state())

    def read_data(self) -> tuple[Tree, Tree]:
        """Return the data as it is now, on the host."""
        x, y = self.data
        return on_host(x), on_host(y)

    def _parameters(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = (
            self.model.parameters if self.parameters is None else self.parameters()
        )
        return found


def _overwrite(array: Array, host: Host) -> bool:
    try:
        array[...] = from_host(host, array)
    except (TypeError, ValueError, RuntimeError):  # of libraries whose arrays stay as they are
        return False
    return True
