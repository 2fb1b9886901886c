"""A traced function as a flat list of steps, which can be looked at and run again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.extend import core

# calls whose body stands for itself: rules of differentiation of their own have none of them
_INLINED = frozenset({"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"})

Place: TypeAlias = int | core.Literal
"""Where a value stands: its number, or the value itself."""

OnStep: TypeAlias = Callable[[int, Sequence[Any], list[Any]], list[Any]]
"""`(number of the step, inputs, outputs)` ↦ what the step shall return."""


@dataclass(frozen=True)
class Step:
    """One primitive operation.

    Attributes:
        equation: of the program.
        inputs: what it is called with.
        outputs: where its answers go.
        variables: the inputs of the equation that are no literals, each once.
        function: of these, the equation alone.
    """

    equation: Any
    inputs: tuple[Place, ...]
    outputs: tuple[int, ...]
    variables: tuple[Any, ...]
    function: Callable[..., Sequence[Any]]

    @classmethod
    def of(
        cls, equation: Any, program: Any, inputs: Sequence[Place], outputs: Sequence[int]
    ) -> Step:
        """Return the step of an equation of `program`."""
        variables = [v for v in equation.invars if not isinstance(v, core.Literal)]
        once = tuple(dict.fromkeys(variables))
        alone = program.replace(
            constvars=(), invars=once, outvars=equation.outvars, eqns=[equation]
        )
        function = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))
        return cls(equation, tuple(inputs), tuple(outputs), once, function)

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return str(self.equation.primitive.name)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the primitive is called with beside arrays."""
        return self.equation.params  # type: ignore[no-any-return]

    def shape(self, position: int) -> tuple[int, ...]:
        """Return the shape of one input."""
        return tuple(self.equation.invars[position].aval.shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return tuple(self.equation.outvars[0].aval.shape)

    def run(self, values: Sequence[Any]) -> list[Any]:
        """Return the outputs."""
        pairs = zip(self.equation.invars, values, strict=True)
        given = {variable: value for variable, value in pairs if variable in self.variables}
        return list(self.function(*(given[variable] for variable in self.variables)))


@dataclass(frozen=True)
class Trace:
    """A function of arrays.

    Attributes:
        steps: in their order; none whose outputs are not used.
        inputs: the places of the arguments.
        outputs: the places of the answers.
        constants: what the function closes over, by place.
        answer: the tree that the function returns, with shapes for arrays.
        bytes: of all that the function computes on its way.
    """

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[Place, ...]
    constants: Mapping[int, Any]
    answer: Any
    bytes: int

    def run(self, arguments: Sequence[Any], on_step: OnStep) -> Any:
        """Return the answer; `on_step` sees every step and may replace what it returns."""
        values: dict[int, Any] = {**self.constants}
        values.update(zip(self.inputs, arguments, strict=True))

        def read(place: Place) -> Any:
            return values[place] if isinstance(place, int) else place.val

        for index, step in enumerate(self.steps):
            inputs = [read(place) for place in step.inputs]
            values.update(zip(step.outputs, on_step(index, inputs, step.run(inputs)), strict=True))
        outputs = [read(place) for place in self.outputs]
        return jax.tree.unflatten(jax.tree.structure(self.answer), outputs)


def trace(fn: Callable[..., Any], *arguments: Any) -> Trace:
    """Return the steps of `fn`; the leaves of `arguments` are the inputs of the trace."""
    closed, answer = jax.make_jaxpr(fn, return_shape=True)(*arguments)
    flat = _Flat()
    inputs = flat.new(closed.jaxpr.invars)
    outputs = flat.inline(closed, inputs)
    steps = _used(flat.steps, outputs)
    return Trace(steps, inputs, tuple(outputs), flat.constants, answer, _bytes(closed.jaxpr))


class _Flat:
    """Collects the steps of a function whose calls are inlined."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.constants: dict[int, Any] = {}
        self._numbers = count()

    def new(self, variables: Sequence[Any]) -> tuple[int, ...]:
        return tuple(next(self._numbers) for _ in variables)

    def inline(self, body: Any, places: Sequence[Place]) -> list[Place]:
        """Append the steps of `body`, called with what stands at `places`; return its outputs."""
        jaxpr, values = getattr(body, "jaxpr", body), getattr(body, "consts", ())
        own = self.new(values)
        self.constants.update(zip(own, values, strict=True))
        variables = [*jaxpr.constvars, *jaxpr.invars]
        known: dict[Any, Place] = dict(zip(variables, [*own, *places], strict=True))

        def place(variable: Any) -> Place:
            return variable if isinstance(variable, core.Literal) else known[variable]

        for equation in jaxpr.eqns:
            inputs = [place(variable) for variable in equation.invars]
            outputs: Sequence[Place]
            if equation.primitive.name in _INLINED:
                inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
                outputs = self.inline(inner, inputs)
            else:
                outputs = numbers = self.new(equation.outvars)
                self.steps.append(Step.of(equation, jaxpr, inputs, numbers))
            known.update(zip(equation.outvars, outputs, strict=True))
        return [place(variable) for variable in jaxpr.outvars]


def _used(steps: Sequence[Step], outputs: Sequence[Place]) -> tuple[Step, ...]:
    """Return the steps that the outputs depend on."""
    wanted = {place for place in outputs if isinstance(place, int)}
    kept = []
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            kept.append(step)
            wanted.update(place for place in step.inputs if isinstance(place, int))
    return tuple(reversed(kept))


def _bytes(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inside = sum(_bytes(body) for body in _bodies(equation.params))
        own = sum(_size(variable.aval) for variable in equation.outvars)
        total += own + inside * equation.params.get("length", 1)
    return total


def _bodies(parameters: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the programs among the parameters of an equation, such as the branches of `cond`."""
    for value in parameters.values():
        for one in value if isinstance(value, tuple) else (value,):
            program = getattr(one, "jaxpr", one)
            if hasattr(program, "eqns"):
                yield program


def _size(aval: Any) -> int:
    if not hasattr(aval, "dtype") or not isinstance(aval.dtype, np.dtype):
        return 0  # keys of random numbers and the like
    return math.prod(aval.shape) * int(aval.dtype.itemsize)
