"""Everything that a problem does, whether it answers with numbers or not."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from influence_core.arrays import device
from influence_core.problem import (
    HandsOver,
    HasLayers,
    Movable,
    ReadsByIndex,
    ReadsData,
    Validates,
)
from influence_core.testing.conformance.calls import arguments, calls_of
from influence_core.testing.conformance.subject import Subject


def actions_of(subject: Subject) -> dict[str, Callable[[], object]]:
    """Return what the subject's problem can be made to do, by name; being made is one of them."""
    calls = {
        name: partial(lambda call: call(arguments(subject)), call)
        for name, call in calls_of(subject).items()
    }
    return {"factory": subject.make, **calls, **_further(subject)}


def _further(subject: Subject) -> dict[str, Callable[[], object]]:
    problem, actions = subject.problem, dict[str, Callable[[], object]]()
    pairs = [subject.pair(0, 2), subject.pair(2, subject.points)]
    if isinstance(problem, Validates):
        actions["validate"] = lambda: problem.validate(subject.batch(), "fit(data), batch 1")
    if isinstance(problem, ReadsData):
        actions["batches"] = lambda: list(problem.batches(pairs))
    if isinstance(problem, ReadsByIndex):
        actions["indexed"] = lambda: [problem.batch(pair) for pair in problem.indexed(pairs) or ()]
    if isinstance(problem, HasLayers):
        actions["layers"] = problem.layers
    if isinstance(problem, HandsOver):
        actions["hand_over"] = lambda: problem.hand_over(subject.random(2, 2)[1])
    if isinstance(problem, Movable):
        actions["to"] = lambda: problem.to(device(problem.reference))
    actions["pickle"] = partial(_pickle, problem)
    return actions


def _pickle(problem: object) -> None:
    with suppress(Exception):  # whether it can be pickled is another question
        pickle.loads(pickle.dumps(problem))
