"""Everything that a problem can be asked, for the checks of whatever holds for every answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from influence_core.arrays import from_host
from influence_core.errors import CapabilityError
from influence_core.modes import LabelKind
from influence_core.problem import (
    Array,
    Batch,
    GeneralizedGaussNewton,
    HasLayers,
    HasPenalty,
    HasValues,
    Labels,
    LinearizesHessian,
    PointQuadratics,
    Problem,
    Tree,
)
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import leaves

_DRAWS = 3


@dataclass(frozen=True)
class Arguments:
    """What the calls are given.

    Attributes:
        problem: who is asked.
        batch: the points, `n` of them.
        names: all parameters, in some order.
        v: vectors, `(k, p)`.
        w: weights of combinations, `(k, n)`.
        rows: a vector for every point, `(n, p)`.
        uniforms: of the points, as in `Labels`.
        weight: of all points, as in `HasPenalty`.
    """

    problem: Any
    batch: Batch
    names: tuple[str, ...]
    v: Array
    w: Array
    rows: Array
    uniforms: Callable[[int], Host]
    weight: float


class Over(Enum):
    """How the points of a batch enter an answer."""

    POINTS = "an entry for every point, whatever the batch that the point comes in"
    SUM = "a sum over the points of the batch, and no mean"
    MEAN = "a mean over the points of the batch, the weighted mean where they have weights"
    NOTHING = "what does not depend on the points"


def _first_axis(_leaf: Host) -> int:
    return 0


def _second_axis(_leaf: Host) -> int:
    return 1


def _axis_of_statistics(leaf: Host) -> int:
    return 1 if leaf.ndim == 4 else 0  # output gradients (c, n, s, o), all else (n, s, …)


@dataclass(frozen=True)
class Call:
    """A question.

    Attributes:
        ask: returns the answer of `arguments.problem`.
        over: how the points enter the answer.
        axis: along which axis of a leaf of the answer they lie, for `Over.POINTS`.
        indices: whether some leaves may hold integers.
    """

    ask: Callable[[Arguments], Tree]
    over: Over
    axis: Callable[[Host], int] = _first_axis
    indices: bool = False

    def __call__(self, arguments: Arguments) -> Tree:
        """Return the answer."""
        return self.ask(arguments)


def arguments(
    subject: Subject,
    seed: int = 0,
    *,
    problem: Problem | None = None,
    batch: Batch | None = None,
    points: slice = slice(None),
    alike: bool = False,
) -> Arguments:
    """Return arguments that differ from seed to seed, in the order of the names as well.

    Args:
        subject: what is examined.
        seed: of the numbers.
        problem: who is asked; None for the subject's.
        batch: `points` as a batch of the problem; None makes one of all points.
        points: which of the subject's points these are: each comes with its own numbers.
        alike: whether every point comes with the same numbers instead.
    """
    problem = subject.problem if problem is None else problem
    n, p, k = subject.points, subject.size, subject.many
    chosen = np.zeros(n, dtype=np.int64)[points] if alike else np.arange(n)[points]
    v, w, vectors = (subject.random(*s, seed=seed)[0] for s in ((k, p), (k, n), (n, p)))

    def array(host: Host) -> Array:
        return from_host(np.ascontiguousarray(host), subject.problem.reference)

    return Arguments(
        problem=problem,
        batch=problem.batch(subject.data) if batch is None else batch,
        names=tuple(subject.names if seed % 2 == 0 else subject.names[::-1]),
        v=array(v),
        w=array(w[:, chosen]),
        rows=array(vectors[chosen]),
        uniforms=lambda positions: uniforms(n, seed)(positions)[:, chosen],
        weight=float(n),
    )


def uniforms(count: int, seed: int = 0, draws: int = _DRAWS) -> Callable[[int], Host]:
    """Return what `Labels` asks for `count` points: each has numbers of its own.

    In the draws of a point every part of `[0, 1)` has its turn, in an order of its own at every
    position, so that averages over many draws come near those over the distribution.
    """

    def drawn(positions: int) -> Host:
        shape = draws, count, positions
        rng = np.random.default_rng([seed, *shape])
        turns = np.argsort(rng.random(shape), axis=0)
        numbers: Host = (turns + rng.random(shape)) / draws
        return numbers

    return drawn


def calls_of(subject: Subject) -> dict[str, Call]:
    """Return what the subject's problem can be asked, by name of the method."""
    return {**_of_points(subject), **_of_means(subject.problem), **_of_parameters(subject.problem)}


def has_inputs(subject: Subject) -> bool:
    """Tell whether `x` has anything to differentiate in."""
    return any(leaf.dtype.kind == "f" for leaf in leaves(subject.host_data[0]))


def _of_points(subject: Subject) -> dict[str, Call]:
    calls = {
        "gradients": Call(lambda a: a.problem.gradients(a.batch, a.names), Over.POINTS),
        "gradient_products": Call(
            lambda a: a.problem.gradient_products(a.batch, a.v, a.names),
            Over.POINTS,
            _second_axis,
        ),
        "gradient_combinations": Call(
            lambda a: a.problem.gradient_combinations(a.batch, a.w, a.names), Over.SUM
        ),
    }
    if has_inputs(subject):
        calls["mixed_gradient_products"] = Call(
            lambda a: a.problem.mixed_gradient_products(a.batch, a.v, a.names),
            Over.POINTS,
            _second_axis,
        )
    if isinstance(subject.problem, PointQuadratics):
        for name in ("hessian_quadratics", "generalized_gauss_newton_quadratics"):
            calls[name] = Call(_quadratics(name), Over.POINTS)
    if isinstance(subject.problem, HasLayers):
        for kind in (LabelKind.GIVEN, LabelKind.EXPECTED, LabelKind.SAMPLED):
            calls[f"layer_statistics, labels={kind.value!r}"] = Call(
                _statistics(kind),
                Over.POINTS,
                _axis_of_statistics,
                indices=True,
            )
    return calls


def _of_means(problem: Problem) -> dict[str, Call]:
    calls = {
        "hessian_product": Call(
            lambda a: a.problem.hessian_product(a.batch, a.v, a.names), Over.MEAN
        )
    }
    if isinstance(problem, LinearizesHessian):
        calls["linearize"] = Call(lambda a: a.problem.linearize(a.batch, a.names)(a.v), Over.MEAN)
    if isinstance(problem, GeneralizedGaussNewton):
        calls["generalized_gauss_newton_product"] = Call(
            lambda a: a.problem.generalized_gauss_newton_product(a.batch, a.v, a.names), Over.MEAN
        )
    return calls


def _of_parameters(problem: Problem) -> dict[str, Call]:
    calls = {}
    if isinstance(problem, HasPenalty):
        calls["penalty"] = Call(lambda a: a.problem.penalty(a.names, a.weight), Over.NOTHING)
    if isinstance(problem, HasValues):
        calls["values"] = Call(lambda a: a.problem.values(a.names), Over.NOTHING)
    return calls


def _quadratics(name: str) -> Callable[[Arguments], Tree]:
    return lambda a: getattr(a.problem, name)(a.batch, a.rows, a.names)


def _statistics(kind: LabelKind) -> Callable[[Arguments], Tree]:
    def ask(a: Arguments) -> Tree:
        labels = Labels(kind, a.uniforms)
        try:
            found = a.problem.layer_statistics(a.batch, list(a.problem.layers()), labels)
        except CapabilityError:  # not for every loss is the distribution of the labels known
            return []
        return [[each.inputs, each.output_gradients, each.counted] for each in found.values()]

    return ask
