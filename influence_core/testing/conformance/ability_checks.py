"""Checks of the smaller abilities: values, penalties, ways to read data, devices, hand-over."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from influence_core.arrays import is_array
from influence_core.problem import (
    BoundsMemory,
    HandsOver,
    HasPenalty,
    HasValues,
    ReadsByIndex,
    ReadsData,
    Shelters,
)
from influence_core.testing.conformance.expect import (
    ability,
    require,
    require_close,
    rounding,
    sheltered,
    skip,
)
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import on_host

_MEMORY = 4096


class AbilityChecks:
    """What only some backends offer, each a protocol."""

    @sheltered
    def test_values(self, subject: Subject) -> None:
        """The parameters themselves, in the order of `names`."""
        problem = ability(subject, HasValues)
        for names in subject.selections:
            want = np.concatenate([np.ravel(subject.values[name]) for name in names])
            rule = "the parameters themselves, in the order of `names`"
            tolerance = rounding(subject.problem.reference)
            require_close(problem.values(names), want, subject, f"values({names})", rule, tolerance)

    @sheltered
    def test_penalty(self, subject: Subject) -> None:
        """The diagonal second derivative of the penalty; zeros where there is none."""
        problem = ability(subject, HasPenalty)
        for weight in (float(subject.points), 2.5):
            diagonal = subject.penalty_diagonal(weight)
            for names in subject.selections:
                got = problem.penalty(names, weight)
                want = diagonal[subject.columns(names)]
                rule = (
                    "the second derivatives of the penalty that the objective adds to the mean "
                    "(`Subject(penalty=…)`; zeros for none), in the order of `names`"
                )
                require_close(got, want, subject, f"penalty({names}, {weight})", rule)

    @sheltered
    def test_data_is_read_in_batches(self, subject: Subject) -> None:
        """One batch for each pair, in their order, in every pass."""
        problem = ability(subject, ReadsData)
        pairs, sizes = _pairs(subject)
        for _ in range(2):
            batches = list(problem.batches(pairs))
            got = [batch.size for batch in batches]
            require(
                got == sizes,
                f"`batches(data)` must yield a batch for each of the pairs, of {sizes} points; "
                f"got {got}.",
            )
            _check_rows(subject, batches, "batches(data)")

    @sheltered
    def test_data_is_read_by_index(self, subject: Subject) -> None:
        """The pairs of a pass, in any order."""
        problem = ability(subject, ReadsByIndex)
        pairs, sizes = _pairs(subject)
        found = problem.indexed(pairs)
        if found is None:
            skip("`indexed(data)` says that a list of pairs can only be read in its order")
        require(
            len(found) == len(pairs),
            f"`indexed(data)` must hold the {len(pairs)} pairs of one pass; got {len(found)}.",
        )
        backwards = [problem.batch(found[index]) for index in reversed(range(len(sizes)))]
        _check_rows(subject, backwards[::-1], "indexed(data)")

    @sheltered
    def test_answers_are_handed_over(self, subject: Subject) -> None:
        """`hand_over` keeps shape and numbers; only the dtype may become shorter."""
        problem = ability(subject, HandsOver)
        host, array = subject.random(3, 4)
        got = problem.hand_over(array)
        require(
            is_array(got) and tuple(got.shape) == (3, 4),
            f"`hand_over(answer)` must return an array of the same shape; got {got!r}.",
        )
        require(
            bool(np.allclose(on_host(got), host, rtol=0.02, atol=0.02)),
            "`hand_over(answer)` must keep the numbers, up to the rounding of the parameters' own "
            f"dtype; it made {on_host(got)[0]} of {host[0]}.",
        )

    def test_shelter_can_be_entered_again(self, subject: Subject) -> None:
        """`shelter()` is a context, also inside of itself."""
        problem = ability(subject, Shelters)
        with problem.shelter(), problem.shelter():
            got = problem.gradients(subject.batch(), subject.names)
        with problem.shelter():
            rule = "∇ℓᵢ in a shelter inside of a shelter"
            require_close(got, subject.truth.gradients, subject, "gradients(batch, names)", rule)

    def test_errors_leave_a_shelter(self, subject: Subject) -> None:
        """Whatever is raised in a shelter is raised from it."""
        problem = ability(subject, Shelters)
        try:
            with problem.shelter():
                raise _TriedError
        except _TriedError:
            return
        raise AssertionError("`with problem.shelter():` must let every exception pass.")

    @sheltered
    def test_memory_limit_is_told(self, subject: Subject) -> None:
        """`max_memory` is a number of bytes, and no more than was asked for."""
        ability(subject, BoundsMemory)
        for asked, most in ((None, math.inf), (_MEMORY, _MEMORY)):
            problem: Any = subject.make(max_memory=asked)
            told = problem.max_memory
            require(
                type(told) is int and 0 < told <= most,
                "`problem.max_memory` must be a number of bytes, an int, and at most the one that "
                f"the factory was given; got {told!r} for a problem with max_memory={asked}.",
            )


class _TriedError(Exception):
    pass


def _pairs(subject: Subject) -> tuple[list[Any], list[int]]:
    cuts = (0, 2, subject.points - 1, subject.points)
    spans = list(itertools.pairwise(cuts))
    return [subject.pair(*span) for span in spans], [stop - start for start, stop in spans]


def _check_rows(subject: Subject, batches: Sequence[Any], call: str) -> None:
    """Require that the batches hold the subject's points in their order."""
    start = 0
    for index, batch in enumerate(batches):
        got = subject.problem.gradients(batch, subject.names)
        want = subject.truth.gradients[start : start + batch.size]
        rule = "those points, in their order"
        require_close(got, want, subject, f"{call} … gradients(batch {index}, names)", rule)
        start += batch.size
    require(start == subject.points, f"`{call}` must hold {subject.points} points; got {start}.")
