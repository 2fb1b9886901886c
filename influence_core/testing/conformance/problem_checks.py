"""Checks of what a problem says of itself, of its batches, and of what it refuses."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np

from influence_core.arrays import from_host, namespace
from influence_core.problem import Tree, Validates
from influence_core.testing.conformance.expect import (
    ability,
    oracle_tolerance,
    refused,
    require,
    require_close,
    require_like,
    require_numbers,
    rounding,
    sheltered,
    skip,
)
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import leaves, on_host, replaced

_LITTLE_MEMORY = 4096


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
    def test_slices_of_a_batch_are_batches(self, subject: Subject) -> None:
        """`batch[slice]` holds those points, and ends where the batch ends."""
        batch, names, n = subject.batch(), subject.names, subject.points
        for points in (slice(0, 2), slice(1, 4), slice(n - 2, n), slice(n - 1, n + 3), slice(n)):
            part, want = batch[points], subject.truth.gradients[points]
            call = f"batch[{points.start}:{points.stop}]"
            require(
                part.size == len(want),
                f"`{call}` of {n} points must have the size {len(want)}; got {part.size}.",
            )
            got = subject.problem.gradients(part, names)
            require_close(got, want, subject, f"gradients({call}, names)", "those points' rows")

    @sheltered
    def test_a_batch_may_have_one_point(self, subject: Subject) -> None:
        """One point is a batch like any other, first thing after the problem was made, too."""
        problem, names = subject.make(), subject.names
        v, array = subject.random(2, subject.size)
        batch = problem.batch(subject.pair(1, 2))
        rule = "the answer for a batch of one point"
        got = problem.hessian_product(batch, array, names)
        want = v @ subject.truth.hessians[1]
        require_close(got, want, subject, "hessian_product(one point, v, names)", rule)
        want = subject.truth.gradients[1:2]
        got = problem.gradients(batch, names)
        require_close(got, want, subject, "gradients(one point, names)", rule)

    @sheltered
    def test_no_points_are_refused(self, subject: Subject) -> None:
        """An empty batch has no mean."""
        rule = "a batch has at least one point"
        refused("batch((no points))", rule, lambda: subject.part(0, 0))

    @sheltered
    def test_lengths_that_differ_are_refused(self, subject: Subject) -> None:
        """Every point has its target."""
        (x, y), n = subject.data, subject.points
        (_, fewer), (one, _) = subject.pair(0, n - 1), subject.pair(0, 1)
        rule = "`x` and `y` have the same number of points; nothing may be broadcast or cut"
        for pair in ((x, fewer), (one, y)):
            refused("batch((x, y))", rule, partial(subject.problem.batch, pair))

    @sheltered
    def test_numbers_that_are_not_finite_are_refused(self, subject: Subject) -> None:
        """`validate` sees NaN and infinity in `x` and `y`."""
        problem = ability(subject, Validates)
        for side, tree in enumerate(subject.data):
            for position, leaf in enumerate(leaves(subject.host_data[side])):
                for bad in (np.nan, np.inf) if leaf.dtype.kind == "f" else ():
                    pair = list(subject.data)
                    pair[side] = _with_number(tree, position, bad)
                    refused(
                        "validate(batch, where)",
                        f"{bad} in {'xy'[side]} makes every answer useless",
                        partial(_validate, problem, tuple(pair)),
                    )

    @sheltered
    def test_good_data_is_accepted(self, subject: Subject) -> None:
        """`validate` returns for all points and for one."""
        problem = ability(subject, Validates)
        for batch in (subject.batch(), subject.part(0, 1)):
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

    @sheltered
    def test_memory_limit_changes_no_number(self, subject: Subject) -> None:
        """`max_memory` may cost time only."""
        problem, names = subject.make(max_memory=_LITTLE_MEMORY), subject.names
        batch, rows = problem.batch(subject.data), subject.size + 2
        v, array = subject.random(rows, subject.size)
        call, rule = f"with max_memory={_LITTLE_MEMORY}", "the same numbers as without a limit"
        got = problem.hessian_product(batch, array, names)
        want = v @ np.mean(subject.truth.hessians, axis=0)
        require_close(got, want, subject, f"hessian_product {call}", rule)
        got = problem.gradient_products(batch, array, names)
        want = v @ subject.truth.gradients.T
        require_close(got, want, subject, f"gradient_products {call}", rule)

    @sheltered
    def test_problems_pickle(self, subject: Subject) -> None:
        """A problem travels to another process; skipped where model or loss cannot."""
        try:
            pickle.dumps((subject.model, subject.loss, dict(subject.options)))
        except Exception as error:
            skip(f"the subject itself cannot be pickled: {error}")
        try:
            again = pickle.loads(pickle.dumps(subject.problem))
        except Exception as error:
            raise AssertionError(
                "`pickle.dumps(problem)` must work where model and loss can be pickled, so that "
                f"problems travel to workers. It raised {type(error).__name__}: {error}. Keep "
                "locks, lambdas and compiled functions out of the state (`__getstate__`)."
            ) from error
        got = on_host(again.gradients(again.batch(subject.data), subject.names))
        tolerance = rounding(subject.problem.reference)
        want = on_host(subject.problem.gradients(subject.batch(), subject.names))
        require_numbers(got, want, "an unpickled problem must give the same answers", tolerance)

    @sheltered
    def test_weights_come_with_the_points(self, subject: Subject) -> None:
        """`batch.weights` are those of the data, also of a slice."""
        batch, w = weighted_batch(subject)
        tolerance = oracle_tolerance(subject.problem.reference)
        for part, want in ((batch, w), (batch[1:4], w[1:4])):
            require(
                part.weights is not None and tuple(part.weights.shape) == want.shape,
                f"`batch.weights` must be the {len(want)} weights of its points; got "
                f"{part.weights!r}.",
            )
            require_numbers(
                on_host(part.weights), want, "`batch.weights` must be those of the data", tolerance
            )


def _validate(problem: Any, pair: tuple[Tree, ...]) -> None:
    problem.validate(problem.batch(pair), "fit(data), batch 1")


def weighted_batch(subject: Subject) -> tuple[Any, Any]:
    """Return all points with uneven weights, a zero among them, and the weights on the host."""
    if subject.weighted is None:
        skip("the subject says nothing about weights (`Subject(weighted=…)`)")
    w = np.linspace(0.0, 3.0, subject.points)
    return subject.problem.batch(subject.weighted(*subject.data, w)), w


def _with_number(tree: Tree, position: int, number: float) -> Tree:
    """Return the tree with a number in the second point of a floating-point leaf."""
    leaf = leaves(tree)[position]
    host = on_host(leaf)
    host[1] = number
    return replaced(tree, position, from_host(host, leaf))
