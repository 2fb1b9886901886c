"""Checks of what a problem says of itself, of its batches, and of what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from influence_core.arrays import from_host, namespace
from influence_core.problem import Validates
from influence_core.testing.conformance.expect import (
    ability,
    refused,
    require,
    require_like,
    sheltered,
)
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import leaves, on_host, replaced
from influence_core.testing.conformance.weights import weighted_batch, weighted_data


class ProblemChecks:
    """The problem, its batches, its refusals."""

    @sheltered
    def test_parameters_are_those_of_the_model(self, subject: Subject) -> None:
        """`parameters` maps names to shapes, in the model's order."""
        got = {name: tuple(shape) for name, shape in subject.problem.parameters.items()}
        want = {name: value.shape for name, value in subject.values.items()}
        require(
            list(got.items()) == list(want.items()),
            f"`problem.parameters` must map the name of every differentiable parameter to its "
            f"shape, in the model's order: {want}; got {got}.",
        )

    @sheltered
    def test_reference_is_floating_point(self, subject: Subject) -> None:
        """`reference` is a real floating-point array."""
        reference = subject.problem.reference
        require_like(reference, reference, "problem.reference")
        require(
            namespace(reference).isdtype(reference.dtype, "real floating"),
            f"`problem.reference` must be of a real floating-point type; got {reference.dtype}.",
        )

    @sheltered
    def test_batch_counts_its_points(self, subject: Subject) -> None:
        """`batch.size` is `n`; `batch.weights` is None or `(n,)`."""
        batch, n = subject.batch(), subject.points
        require(
            type(batch.size) is int and batch.size == n,
            f"`batch((x, y)).size` must be the number of points, the int {n}; got {batch.size!r}.",
        )
        require(
            batch.weights is None or tuple(batch.weights.shape) == (n,),
            f"`batch((x, y)).weights` must be None for ones, or ({n},); got {batch.weights!r}.",
        )

    @sheltered
    def test_no_points_are_refused(self, subject: Subject) -> None:
        """An empty batch has no mean."""
        rule = "a batch has at least one point"
        refused("batch((no points))", rule, lambda: subject.part(0, 0))

    @sheltered
    def test_lengths_that_differ_are_refused(self, subject: Subject) -> None:
        """Every point has its target, and its weight where there are weights."""
        (x, y), n = subject.data, subject.points
        (_, fewer), (one, _) = subject.pair(0, n - 1), subject.pair(0, 1)
        wrong: list[Any] = [(x, fewer), (one, y)]
        if subject.weighted is not None:
            wrong += [weighted_data(subject, np.ones(count)) for count in (n - 1, 1)]
        rule = "`x`, `y` and weights have as many points; nothing may be broadcast or cut"
        for data in wrong:
            refused("batch(data)", rule, partial(subject.problem.batch, data))

    @sheltered
    def test_numbers_that_are_not_finite_are_refused(self, subject: Subject) -> None:
        """`validate` sees NaN and infinity in `x` and `y`, and in weights."""
        problem = ability(subject, Validates)
        for bad in (np.nan, np.inf):
            for where, data in _with_number(subject, bad):
                rule = f"{bad} in {where} makes every answer useless"
                refused("validate(batch, where)", rule, partial(_validate, problem, data))

    @sheltered
    def test_good_data_is_accepted(self, subject: Subject) -> None:
        """`validate` returns for all points and for one, and for weights with a zero."""
        problem = ability(subject, Validates)
        batches = [subject.batch(), subject.part(0, 1)]
        if subject.weighted is not None:
            batches.append(weighted_batch(subject)[0])
        for batch in batches:
            answer = problem.validate(batch, "fit(data), batch 1")
            require(answer is None, f"`validate` returns nothing; it returned {answer!r}.")

    def test_unknown_options_are_refused(self, subject: Subject) -> None:
        """A keyword that the factory does not know is a mistake of the user's."""
        refused(
            "factory(model, loss, no_such_option=1)",
            "a misspelt option must not be ignored",
            lambda: subject.make(no_such_option=1),
            TypeError,
        )


def _validate(problem: Any, data: Any) -> None:
    problem.validate(problem.batch(data), "fit(data), batch 1")


def _with_number(subject: Subject, number: float) -> Iterator[tuple[str, Any]]:
    """Yield the data with the number in the second point, once for each array that can hold it."""
    for side, tree in enumerate(subject.data):
        for position, leaf in enumerate(leaves(tree)):
            host = on_host(leaf)
            if host.dtype.kind == "f":
                host[1] = number
                pair = list(subject.data)
                pair[side] = replaced(tree, position, from_host(host, leaf))
                yield "xy"[side], tuple(pair)
    if subject.weighted is not None:
        weights = np.ones(subject.points)
        weights[1] = number
        yield "weights", weighted_data(subject, weights)
