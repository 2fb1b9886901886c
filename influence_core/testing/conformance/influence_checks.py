"""Checks of the whole job: `Influence` on the backend against a dense solve of the oracle."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_core.arrays import epsilon, map_tree
from influence_core.errors import InfluenceWarning
from influence_core.influence import Influence
from influence_core.methods import Cg, Direct, Method
from influence_core.modes import SecondOrderMode
from influence_core.problem import GeneralizedGaussNewton
from influence_core.testing.conformance.calls import has_inputs
from influence_core.testing.conformance.expect import (
    ability,
    known_gauss_newton,
    oracle_tolerance,
    require_numbers,
    skip,
)
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import leaves, on_host

_TESTS = 3


@dataclass(frozen=True)
class _Dense:
    """`(C + λI)⁻¹` of all training points, with a λ for which it is positive definite."""

    regularization: float
    inverse: Host

    @classmethod
    def of(cls, curvature: Host) -> _Dense:
        values = np.linalg.eigvalsh(curvature)
        damping = float(max(0.1 * np.max(np.abs(values)), -1.5 * values[0]))
        return cls(damping, np.linalg.inv(curvature + damping * np.eye(len(curvature))))


class InfluenceChecks:
    """`fit` and `influences` through two methods, however the data is cut."""

    def test_influences_by_direct(self, subject: Subject) -> None:
        """`∇ℓ(test) (H + λI)⁻¹ ∇ℓ(train)ᵀ`, by a factorisation."""
        _check_influences(subject, Direct())

    def test_influences_by_conjugate_gradient(self, subject: Subject) -> None:
        """The same by products only."""
        tolerance = 1e-3 * oracle_tolerance(subject.problem.reference)
        _check_influences(subject, Cg(rtol=max(tolerance, 1e-9), atol=0.0))

    def test_influences_of_perturbations(self, subject: Subject) -> None:
        """`∇ₓ⟨(H + λI)⁻¹ ∇ℓ(test), ∇ℓ(train)⟩`."""
        if not has_inputs(subject):
            skip("`x` holds integers only: there is nothing to differentiate in")
        dense = _Dense.of(_with_penalty(subject.truth.hessians, subject))
        factors = subject.truth.gradients[:_TESTS] @ dense.inverse
        with _quietly():
            fitted = _fitted(subject, Direct(), dense.regularization, 2)
            got = fitted.influences(*subject.pair(0, _TESTS), *subject.data, mode="perturbation")
        want = map_tree(lambda leaf: np.moveaxis(leaf @ factors.T, -1, 0), subject.truth.mixed)
        rule = "`Influence(…, Direct()).influences(…, mode='perturbation')` must equal the oracle's"
        for one, other in zip(leaves(got), leaves(want), strict=True):
            require_numbers(on_host(one), other, rule, _tolerance(one, subject))

    def test_influences_with_gauss_newton(self, subject: Subject) -> None:
        """The same with the generalised Gauss–Newton matrix."""
        ability(subject, GeneralizedGaussNewton)
        curvature = _with_penalty(known_gauss_newton(subject), subject)
        mode = SecondOrderMode.GENERALIZED_GAUSS_NEWTON
        _check(subject, Direct(), _Dense.of(curvature), second_order_mode=mode)


def _with_penalty(matrices: Host, subject: Subject) -> Host:
    """Return the second derivative of the objective from those of the points, `(n, p, p)`."""
    penalty = subject.penalty_diagonal(float(subject.points))
    answer: Host = np.mean(matrices, axis=0) + np.diag(penalty)
    return answer


def _check_influences(subject: Subject, method: Method) -> None:
    _check(subject, method, _Dense.of(_with_penalty(subject.truth.hessians, subject)))


def _check(subject: Subject, method: Method, dense: _Dense, **options: Any) -> None:
    rows = subject.truth.gradients
    want = rows[:_TESTS] @ dense.inverse @ rows.T
    for size in (2, subject.points):
        with _quietly():
            fitted = _fitted(subject, method, dense.regularization, size, **options)
            got = fitted.influences(*subject.pair(0, _TESTS), *subject.data)
        rule = (
            f"`Influence(model, loss, {method!r}).fit(batches of {size}).influences(…)` must equal "
            "a dense solve with the oracle's derivatives, whatever the batch size"
        )
        require_numbers(on_host(got), want, rule, _tolerance(got, subject))


def _fitted(
    subject: Subject, method: Method, regularization: float, size: int, **options: Any
) -> Influence:
    starts = range(0, subject.points, size)
    data = [subject.pair(start, min(start + size, subject.points)) for start in starts]
    return Influence(
        subject.model,
        subject.loss,
        method,
        regularization=regularization,
        backend=subject.backend,
        **{**subject.options, **options},
    ).fit(data)


def _tolerance(answer: Any, subject: Subject) -> float:
    # a solve multiplies the error of the derivatives; the answer may be in a shorter dtype
    return max(10 * oracle_tolerance(subject.problem.reference), 8 * epsilon(answer))


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        # subjects need not be trained, and wrong numbers are to be shown rather than warned of
        warnings.simplefilter("ignore", InfluenceWarning)
        yield
