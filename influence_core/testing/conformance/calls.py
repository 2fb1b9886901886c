"""Everything that a problem can be asked, for the checks of how it behaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import leaves

_ROWS = 3


@dataclass(frozen=True)
class Arguments:
    """What the calls are given.

    Attributes:
        batch: all points.
        names: all parameters, in some order.
        v: vectors, `(k, p)`.
        w: weights of combinations, `(k, n)`.
        rows: a vector for every point, `(n, p)`.
    """

    batch: Batch
    names: tuple[str, ...]
    v: Array
    w: Array
    rows: Array


Call = Callable[[Arguments], Tree]


def arguments(subject: Subject, seed: int = 0) -> Arguments:
    """Return arguments that differ from seed to seed, in the order of the names as well."""
    names = tuple(subject.names if seed % 2 == 0 else subject.names[::-1])
    shapes = (_ROWS, subject.size), (_ROWS, subject.points), (subject.points, subject.size)
    v, w, rows = (subject.random(*shape, seed=seed)[1] for shape in shapes)
    return Arguments(subject.batch(), names, v, w, rows)


def calls_of(subject: Subject) -> dict[str, Call]:
    """Return what the subject's problem can be asked, by name of the method."""
    problem = subject.problem
    return {**_required(problem, subject), **_optional(problem)}


def given_labels(points: int) -> Labels:
    """Return the labels of the data."""
    return Labels(LabelKind.GIVEN, lambda positions: np.full((1, points, positions), 0.5))


def has_inputs(subject: Subject) -> bool:
    """Tell whether `x` has anything to differentiate in."""
    return any(leaf.dtype.kind == "f" for leaf in leaves(subject.host_data[0]))


def _required(problem: Problem, subject: Subject) -> dict[str, Call]:
    calls: dict[str, Call] = {
        "gradients": lambda a: problem.gradients(a.batch, a.names),
        "gradient_products": lambda a: problem.gradient_products(a.batch, a.v, a.names),
        "gradient_combinations": lambda a: problem.gradient_combinations(a.batch, a.w, a.names),
        "hessian_product": lambda a: problem.hessian_product(a.batch, a.v, a.names),
    }
    if has_inputs(subject):
        mixed = problem.mixed_gradient_products
        calls["mixed_gradient_products"] = lambda a: mixed(a.batch, a.v, a.names)
    return calls


def _optional(problem: Problem) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    if isinstance(problem, LinearizesHessian):
        linearize = problem.linearize
        calls["linearize"] = lambda a: linearize(a.batch, a.names)(a.v)
    if isinstance(problem, GeneralizedGaussNewton):
        product = problem.generalized_gauss_newton_product
        calls["generalized_gauss_newton_product"] = lambda a: product(a.batch, a.v, a.names)
    if isinstance(problem, PointQuadratics):
        hessian = problem.hessian_quadratics
        gauss_newton = problem.generalized_gauss_newton_quadratics
        calls["hessian_quadratics"] = lambda a: hessian(a.batch, a.rows, a.names)
        calls["generalized_gauss_newton_quadratics"] = lambda a: gauss_newton(
            a.batch, a.rows, a.names
        )
    if isinstance(problem, HasPenalty):
        penalty = problem.penalty
        calls["penalty"] = lambda a: penalty(a.names, float(a.batch.size))
    if isinstance(problem, HasValues):
        values = problem.values
        calls["values"] = lambda a: values(a.names)
    if isinstance(problem, HasLayers):
        calls["layer_statistics"] = _statistics(problem)
    return calls


def _statistics(problem: HasLayers) -> Call:
    def call(a: Arguments) -> Tree:
        names = list(problem.layers())
        found = problem.layer_statistics(a.batch, names, given_labels(a.batch.size))
        return [[each.inputs, each.output_gradients] for each in found.values()]

    return call
