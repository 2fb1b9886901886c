"""What the checks demand, in words for the author of a backend."""

from __future__ import annotations

import functools
import unittest
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias, TypeVar

import numpy as np

from influence_core.arrays import device, epsilon, is_array, namespace
from influence_core.errors import InfluenceError
from influence_core.fitted import shelter
from influence_core.problem import Array, Tree
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import leaves, on_host

_Check = TypeVar("_Check", bound=Callable[[Any, Subject], None])
_Numbers: TypeAlias = "Host | float"


def sheltered(check: _Check) -> _Check:
    """Run a check in the context in which the core computes with the problem."""

    @functools.wraps(check)
    def inside(self: Any, subject: Subject) -> None:
        with shelter(subject.problem):
            check(self, subject)

    return inside  # type: ignore[return-value]


def skip(reason: str) -> NoReturn:
    """Skip the check; pytest and unittest both understand it."""
    raise unittest.SkipTest(reason)


def ability(subject: Subject, protocol: Any) -> Any:
    """Return the problem if it offers a protocol; skip the check otherwise."""
    if not isinstance(subject.problem, protocol):
        skip(f"the backend does not offer `influence_core.problem.{protocol.__name__}`")
    return subject.problem


def known_gauss_newton(subject: Subject) -> Host:
    """Return the oracle's `Jᵢᵀ (∇²_f ℓᵢ) Jᵢ`, `(n, p, p)`; skip the check without one."""
    if subject.truth.gauss_newton is None:
        skip("the oracle knows no outputs (`FiniteDifferences(outputs=…, output_losses=…)`)")
    return subject.truth.gauss_newton


def require(holds: bool, message: str) -> None:
    """Fail the check with a message unless something holds."""
    if not holds:
        raise AssertionError(message)


def refused(call: str, rule: str, action: Callable[[], object], *others: type[Exception]) -> None:
    """Require that `action` raises an error of `influence_core.errors`, or one of `others`."""
    try:
        action()
    except Exception as error:
        if isinstance(error, (InfluenceError, *others)):
            return
        raise AssertionError(
            f"`{call}` must raise an exception of `influence_core.errors`: {rule}. It raised "
            f"{type(error).__name__}: {error}"
        ) from error
    raise AssertionError(
        f"`{call}` must raise an exception of `influence_core.errors`: {rule}. It raised nothing."
    )


def oracle_tolerance(reference: Array) -> float:
    """Return the relative error that an answer may have against the oracle."""
    return max(1e-6, 1e4 * epsilon(reference))


def rounding(reference: Array) -> float:
    """Return the relative error that two ways to one number may differ by."""
    return max(1e-10, 1e3 * epsilon(reference))


def require_like(got: Any, reference: Array, call: str, *, indices: bool = False) -> None:
    """Require an array in the namespace, dtype and device of `reference`, without a graph.

    Args:
        got: the answer.
        reference: a parameter.
        call: what was called.
        indices: whether the answer may hold integers.
    """
    require(is_array(got), f"`{call}` must return an array; it returned {type(got).__name__}.")
    for kind, read in (("namespace", namespace), ("dtype", _dtype), ("device", device)):
        if indices and kind == "dtype" and namespace(got).isdtype(got.dtype, "integral"):
            continue
        want, found = read(reference), read(got)
        require(
            bool(found == want),
            f"`{call}` must answer in the {kind} of `problem.reference`, {want}; it answered in "
            f"{found}. Create every array from the reference, and convert before you return.",
        )
    require(
        not getattr(got, "requires_grad", False),
        f"`{call}` must return a detached array; the answer carries a graph of derivatives, which "
        "keeps its memory alive. Detach it.",
    )


def require_close(
    got: Any, want: _Numbers, subject: Subject, call: str, rule: str, tolerance: float | None = None
) -> None:
    """Require an array like the reference with the shape and the numbers of `want`.

    Args:
        got: the answer.
        want: the numbers.
        subject: says which library is expected.
        call: what was called.
        rule: what it must return, as in "`call` must return {rule}".
        tolerance: the largest error relative to the largest number; None for that of an oracle.
    """
    reference = subject.problem.reference
    require_like(got, reference, call)
    want = np.asarray(want)
    require(
        tuple(got.shape) == want.shape,
        f"`{call}` must return {rule}, of shape {want.shape}; got the shape {tuple(got.shape)}.",
    )
    tolerance = oracle_tolerance(reference) if tolerance is None else tolerance
    require_numbers(on_host(got), want, f"`{call}` must return {rule}", tolerance)


def require_numbers(
    got: Host, want: _Numbers, rule: str, tolerance: float, *, terms: float = 0.0
) -> None:
    """Require numbers that are equal up to an error relative to the largest.

    Args:
        got: the answer.
        want: the numbers.
        rule: what has to hold.
        tolerance: the largest error relative to the largest number of `want`, or of `terms`.
        terms: the largest number that was added up; the sum may be near zero.
    """
    got, want = np.asarray(got), np.asarray(want)
    size = max(float(np.max(np.abs(want), initial=0.0)), terms) or 1.0
    # written so that NaN fails
    if np.all(np.abs(got - want) <= tolerance * size):
        return
    error = float(np.max(np.abs(got - want))) / size
    raise AssertionError(
        f"{rule}; the largest error is {error:.1e} of the largest number, {tolerance:.1e} is "
        f"allowed. {_factor(got, want, tolerance)}Got {_shown(got)}, want {_shown(want)}."
    )


def require_same(got: Tree, want: Tree, rule: str, tolerance: float, *, terms: float = 0.0) -> None:
    """Require a tree with the shapes and the numbers of another; as `require_numbers`."""
    found, wanted = leaves(got), leaves(want)
    shapes = [[tuple(np.shape(leaf)) for leaf in side] for side in (found, wanted)]
    require(shapes[0] == shapes[1], f"{rule}; got arrays of {shapes[0]}, want {shapes[1]}.")
    for one, other in zip(found, wanted, strict=True):
        require_numbers(on_host(one), on_host(other), rule, tolerance, terms=terms)


def require_tree(
    got: Tree, want: Tree, subject: Subject, call: str, rule: str, tolerance: float | None = None
) -> None:
    """Require a tree of such arrays; where `want` has no leaf, `got` has none."""
    found, wanted = leaves(got), leaves(want)
    require(
        len(found) == len(wanted),
        f"`{call}` must return {rule}, in the tree of `x`: an array for each of its {len(wanted)} "
        f"floating-point leaves; got {len(found)}.",
    )
    for one, other in zip(found, wanted, strict=True):
        require_close(one, other, subject, call, rule, tolerance)


def _dtype(array: Array) -> Any:
    return array.dtype


def _factor(got: Host, want: Host, tolerance: float) -> str:
    """Say which number was multiplied by mistake, if one was."""
    square = float(np.sum(want * want))
    factor = float(np.sum(got * want)) / square if square > 0 else 0.0
    rest = np.max(np.abs(got - factor * want), initial=0.0)
    if factor == 0.0 or not rest <= tolerance * abs(factor) * np.max(np.abs(want)):
        return ""
    return f"Every number is {factor:.6g} times what it should be. "


def _shown(numbers: Host) -> str:
    return str([float(f"{number:.6g}") for number in numbers.ravel()[:4]]) + (
        "…" if numbers.size > 4 else ""
    )
