"""Checks of problems that must answer as the first one does: with little memory, pickled, moved."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from influence_core.arrays import device
from influence_core.fitted import shelter
from influence_core.problem import Movable, Problem, Tree
from influence_core.testing.conformance.calls import arguments, calls_of
from influence_core.testing.conformance.expect import (
    ability,
    require,
    require_same,
    rounding,
    sheltered,
    skip,
)
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import on_host

# one point or vector at a time, and a few of them with a shorter last part
_LITTLE_MEMORY = (1, 4096)


class TwinChecks:
    """Every call, of another problem for the same model."""

    @sheltered
    def test_memory_limit_changes_no_number(self, subject: Subject) -> None:
        """`max_memory` may cost time only."""
        want = _answers(subject, subject.problem)
        for memory in _LITTLE_MEMORY:
            got = _answers(subject, subject.make(max_memory=memory))
            _check_same(subject, got, want, f"with max_memory={memory} as without a limit")

    @sheltered
    def test_problems_pickle(self, subject: Subject) -> None:
        """A problem travels to another process; skipped where model or loss cannot."""
        try:
            pickle.dumps((subject.model, subject.loss, dict(subject.options)))
        except Exception as error:
            skip(f"the subject itself cannot be pickled: {error}")
        want = _answers(subject, subject.problem)
        for made, problem in _with_memory_or_little(subject).items():
            got = _answers(subject, _pickled(problem))
            _check_same(subject, got, want, f"after the problem was pickled{made} as before")
        again = _answers(subject, subject.problem)
        _check_same(subject, again, want, "in the problem that was pickled: it stays as it is")

    @sheltered
    def test_problems_move(self, subject: Subject) -> None:
        """`to(device)` is the same problem on that device; here on its own."""
        ability(subject, Movable)
        want = _answers(subject, subject.problem)
        for made, problem in _with_memory_or_little(subject).items():
            place = device(problem.reference)
            moved = problem.to(place)
            require(
                bool(device(moved.reference) == place),
                f"`to({place})` must lie on that device; it lies on {device(moved.reference)}.",
            )
            _check_same(
                subject, _answers(subject, moved), want, f"after `to(device)`{made} as before"
            )
        again = _answers(subject, subject.problem)
        _check_same(subject, again, want, "in the problem that was moved: it stays as it is")

    @sheltered
    def test_parameters_are_copied(self, subject: Subject) -> None:
        """A problem keeps the parameters that the model had when it was made."""
        want, problem = _answers(subject, subject.problem), subject.make()
        try:
            others = {name: 1.25 * value + 0.125 for name, value in subject.values.items()}
            if not subject.write_parameters(others):
                skip(
                    "the model's arrays cannot be written into, and there is no `Subject(assign=…)`"
                )
            newer = on_host(
                calls_of(subject)["gradients"](arguments(subject, problem=subject.make()))
            )
            got = _answers(subject, problem)
        finally:
            subject.write_parameters(subject.values)
        rule = "after the model was trained on as before: copy the parameters"
        _check_same(subject, got, want, rule)
        require(
            not np.allclose(newer, want["gradients"]),
            "a problem that is made after the model was trained on must have the parameters that "
            "the model has then; its gradients are those at the old ones. Remember nothing by the "
            "model.",
        )


def _answers(subject: Subject, problem: Problem) -> dict[str, Tree]:
    """Return the answers of a problem for the subject's model to every call, on the host."""
    with shelter(problem):
        return {
            name: on_host(call(arguments(subject, problem=problem)))
            for name, call in calls_of(subject).items()
        }


def _check_same(
    subject: Subject, got: Mapping[str, Tree], want: Mapping[str, Tree], when: str
) -> None:
    tolerance = 10 * rounding(subject.problem.reference)
    for name, answer in want.items():
        require_same(got[name], answer, f"`{name}` must be the same {when}", tolerance)


def _with_memory_or_little(subject: Subject) -> Mapping[str, Any]:
    little = _LITTLE_MEMORY[-1]
    return {"": subject.problem, f" with max_memory={little}": subject.make(max_memory=little)}


def _pickled(problem: Problem) -> Problem:
    try:
        again: Problem = pickle.loads(pickle.dumps(problem))
    except Exception as error:
        raise AssertionError(
            "`pickle.dumps(problem)` must work where model and loss can be pickled, so that "
            f"problems travel to workers. It raised {type(error).__name__}: {error}. Keep locks, "
            "lambdas and compiled functions out of the state (`__getstate__`)."
        ) from error
    return again
