"""Checks of how a problem behaves, whatever it is asked: nothing is kept, aliased or changed."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from influence_core.arrays import namespace
from influence_core.fitted import shelter
from influence_core.problem import Array, Tree
from influence_core.testing.conformance.actions import actions_of
from influence_core.testing.conformance.calls import Arguments, Call, arguments, calls_of
from influence_core.testing.conformance.expect import (
    require,
    require_like,
    require_same,
    rounding,
    sheltered,
)
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import leaves, on_host, same

_THREADS, _ROUNDS = 4, 3
_ARRAYS = "v", "w", "rows"


class BehaviourChecks:
    """Every call of the problem, the optional ones included."""

    @sheltered
    def test_answers_follow_the_reference(self, subject: Subject) -> None:
        """Namespace, dtype, device, and no graph of derivatives."""
        for name, call in calls_of(subject).items():
            for leaf in leaves(call(arguments(subject))):
                require_like(leaf, subject.problem.reference, name, indices=call.indices)

    @sheltered
    def test_answers_are_deterministic(self, subject: Subject) -> None:
        """The same question has the same answer."""
        a = arguments(subject)
        for name, call in calls_of(subject).items():
            _check_same(subject, call(a), on_host(call(a)), f"`{name}`, asked twice, must agree")

    @sheltered
    def test_answers_stay_as_they_were(self, subject: Subject) -> None:
        """A later call leaves earlier answers alone."""
        calls, answers, kept = calls_of(subject), {}, {}
        for name, call in calls.items():
            answers[name] = call(arguments(subject))
            kept[name] = on_host(answers[name])
        for seed in (1, 2):
            for call in calls.values():
                call(arguments(subject, seed))
        for name, answer in answers.items():
            rule = f"an answer of `{name}` must stay as it was when the problem is asked again"
            _check_same(subject, answer, kept[name], f"{rule}: return fresh memory, no buffer")

    @sheltered
    def test_answers_alias_nothing(self, subject: Subject) -> None:
        """Whoever writes into an answer changes that answer only."""
        for name, call in calls_of(subject).items():
            a = arguments(subject)
            before, answer = _hosts(a), call(a)
            kept = on_host(answer)
            for leaf in leaves(answer):
                _overwrite(leaf)
            rule = f"writing into an answer of `{name}` must change nothing else"
            _check_unchanged(subject, rule)
            _check_arguments(before, _hosts(a), rule)
            _check_same(subject, call(a), kept, f"{rule}: copy what you keep before you return it")

    @sheltered
    def test_arguments_are_left_alone(self, subject: Subject) -> None:
        """Vectors, weights and data are read only."""
        for name, call in calls_of(subject).items():
            a = arguments(subject)
            before = _hosts(a)
            call(a)
            _check_arguments(before, _hosts(a), f"`{name}` must not write into its arguments")
        for name, act in actions_of(subject).items():
            act()
            _check_data(subject, f"`{name}` must not write into the data")

    @sheltered
    def test_vectors_may_be_views(self, subject: Subject) -> None:
        """The numbers of vectors and weights count, and not how they lie in memory."""
        a = arguments(subject)
        views = {name: _view(getattr(a, name)) for name in _ARRAYS}
        for name, call in calls_of(subject).items():
            rule = f"`{name}` must take arrays that are slices of larger ones as it takes others"
            _check_same(subject, call(replace(a, **views)), on_host(call(a)), rule)

    @sheltered
    def test_the_model_is_left_alone(self, subject: Subject) -> None:
        """The user's model is what it was: its parameters, and all that `Subject.state` tells."""
        for name, act in actions_of(subject).items():
            act()
            _check_model(subject, f"`{name}` must leave the user's model as it is")

    @sheltered
    def test_random_states_are_left_alone(self, subject: Subject) -> None:
        """The global generators of Python and NumPy do not move."""
        for name, act in actions_of(subject).items():
            before = _random_states()
            act()
            require(
                _random_states() == before,
                f"`{name}` must not move the global random generators of Python or NumPy. Use a "
                "generator of your own.",
            )

    @sheltered
    def test_threads_do_not_disturb_each_other(self, subject: Subject) -> None:
        """Calls may come from several threads at once."""
        calls = calls_of(subject)
        each = [arguments(subject, seed) for seed in range(_THREADS)]
        wanted = [{name: on_host(call(a)) for name, call in calls.items()} for a in each]
        start = threading.Barrier(_THREADS, timeout=60)

        def work(a: Arguments) -> list[dict[str, Tree]]:
            start.wait()
            with shelter(subject.problem):
                return [_answers(calls, a) for _ in range(_ROUNDS)]

        with ThreadPoolExecutor(_THREADS) as pool:
            got = list(pool.map(work, each))
        for want, rounds in zip(wanted, got, strict=True):
            for answers in rounds:
                for name, answer in answers.items():
                    rule = f"`{name}` must give the same answer when other threads call as well"
                    _check_same(subject, answer, want[name], f"{rule}: keep no state of a call")


def _answers(calls: Mapping[str, Call], a: Arguments) -> dict[str, Tree]:
    return {name: on_host(call(a)) for name, call in calls.items()}


def _check_same(subject: Subject, got: Tree, want: Tree, rule: str) -> None:
    require_same(got, want, rule, rounding(subject.problem.reference))


def _check_unchanged(subject: Subject, rule: str) -> None:
    _check_model(subject, rule)
    _check_data(subject, rule)


def _check_model(subject: Subject, rule: str) -> None:
    now = {**subject.read_state(), **subject.read_parameters()}
    for name, then in {**subject.first_state, **subject.values}.items():
        require(
            name in now and same(now[name], then),
            f"{rule}; {name!r} was {then} and is {now.get(name)}.",
        )


def _check_data(subject: Subject, rule: str) -> None:
    pairs = zip(leaves(subject.read_data()), leaves(subject.host_data), strict=True)
    require(
        all(np.array_equal(now, then) for now, then in pairs),
        f"{rule}; the data `(x, y)` of the user has changed.",
    )


def _hosts(a: Arguments) -> dict[str, Host]:
    return {name: on_host(getattr(a, name)) for name in _ARRAYS}


def _check_arguments(before: Mapping[str, Host], after: Mapping[str, Host], rule: str) -> None:
    for name, value in before.items():
        require(np.array_equal(value, after[name]), f"{rule}; the argument `{name}` has changed.")


def _random_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - it is read, not drawn from
    return random.getstate(), kind, tuple(np.asarray(keys).tolist()), *rest


def _view(array: Array) -> Array:
    """Return the same numbers as a slice of an array with longer rows."""
    return namespace(array).concat([0 * array, array], axis=1)[:, array.shape[1] :]


def _overwrite(leaf: Any) -> None:
    try:
        leaf[...] = 7.0
    except (TypeError, ValueError, RuntimeError):
        return  # arrays of this library cannot be written into, so nobody can do harm
