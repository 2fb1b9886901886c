"""Checks of products with the Hessian and with the generalised Gauss–Newton matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from influence_core.problem import (
    Array,
    Batch,
    GeneralizedGaussNewton,
    LinearizesHessian,
    PointQuadratics,
)
from influence_core.testing.conformance.expect import (
    ability,
    known_gauss_newton,
    require_close,
    require_numbers,
    require_same,
    rounding,
    sheltered,
)
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import on_host

_Product: TypeAlias = Callable[[Batch, Array, list[str]], Array]

_BLOCK = "block restricted to `names` on both sides, columns in their order"


class HessianChecks:
    """`hessian_product`, `linearize` and `hessian_quadratics`."""

    @sheltered
    def test_hessian_product(self, subject: Subject) -> None:
        """`v · ∇²(mean ℓ)` for any list of names, one vector and many."""
        hessian = np.mean(subject.truth.hessians, axis=0)
        _check_product(subject, "hessian_product", subject.problem.hessian_product, hessian)

    @sheltered
    def test_hessian_is_symmetric(self, subject: Subject) -> None:
        """`uᵀHv = vᵀHu`."""
        _check_symmetry(subject, "hessian_product", subject.problem.hessian_product)

    @sheltered
    def test_hessian_is_linear(self, subject: Subject) -> None:
        """`H(2u - v) = 2Hu - Hv`, and `H 0 = 0`."""
        _check_linearity(subject, "hessian_product", subject.problem.hessian_product)

    @sheltered
    def test_linearize(self, subject: Subject) -> None:
        """The linearised product is the Hessian's, for one vector after the other."""
        problem = ability(subject, LinearizesHessian)
        for names in subject.selections:
            product = problem.linearize(subject.batch(), names)
            place = subject.columns(names)
            hessian = np.mean(subject.truth.hessians, axis=0)[np.ix_(place, place)]
            for k in subject.counts(names):
                v, array = subject.random(k, place.size)
                call = f"linearize(batch, {names})(v)"
                rule = "hessian_product(batch, v, names), for every v that it is called with"
                require_close(product(array), v @ hessian, subject, call, rule)

    @sheltered
    def test_linearizations_stand_alone(self, subject: Subject) -> None:
        """Each keeps its own batch, and leaves its earlier answers alone."""
        problem, names = ability(subject, LinearizesHessian), subject.names
        (_, u), (_, v) = (subject.random(subject.many, subject.size, seed=seed) for seed in (0, 1))
        batches = subject.part(0, 3), subject.part(2, 5)
        products = [problem.linearize(batch, names) for batch in batches]
        answers = [product(u) for product in products]
        for product in products:
            product(v)
        tolerance = 10 * rounding(subject.problem.reference)
        for batch, answer in zip(batches, answers, strict=True):
            rule = (
                "`linearize(batch, names)(v)` must be `hessian_product(batch, v, names)` in full "
                "precision, also when other batches are linearised and other vectors come after v"
            )
            require_same(answer, problem.hessian_product(batch, u, names), rule, tolerance)

    @sheltered
    def test_hessian_quadratics(self, subject: Subject) -> None:
        """`vᵢ · ∇²ℓᵢ · vᵢᵀ`, every point with a vector of its own."""
        problem = ability(subject, PointQuadratics)
        name, matrices = "hessian_quadratics", subject.truth.hessians
        _check_quadratics(subject, name, problem.hessian_quadratics, matrices)
        _check_single_points(subject, name, problem.hessian_quadratics, problem.hessian_product)


class GaussNewtonChecks:
    """`generalized_gauss_newton_product` and `generalized_gauss_newton_quadratics`."""

    @sheltered
    def test_gauss_newton_product(self, subject: Subject) -> None:
        """`v · mean(Jᵢᵀ (∇²_f ℓᵢ) Jᵢ)`, for any list of names, one vector and many."""
        name, product = _gauss_newton(subject)
        _check_product(subject, name, product, np.mean(known_gauss_newton(subject), axis=0))

    @sheltered
    def test_gauss_newton_is_symmetric(self, subject: Subject) -> None:
        """`uᵀGv = vᵀGu`."""
        _check_symmetry(subject, *_gauss_newton(subject))

    @sheltered
    def test_gauss_newton_is_linear(self, subject: Subject) -> None:
        """`G(2u - v) = 2Gu - Gv`, and `G 0 = 0`."""
        _check_linearity(subject, *_gauss_newton(subject))

    @sheltered
    def test_gauss_newton_quadratics(self, subject: Subject) -> None:
        """`vᵢ · Jᵢᵀ (∇²_f ℓᵢ) Jᵢ · vᵢᵀ`, every point with a vector of its own."""
        name = "generalized_gauss_newton_quadratics"
        quadratics = getattr(ability(subject, PointQuadratics), name)
        _check_quadratics(subject, name, quadratics, known_gauss_newton(subject))
        if isinstance(subject.problem, GeneralizedGaussNewton):
            product = subject.problem.generalized_gauss_newton_product
            _check_single_points(subject, name, quadratics, product)


def _gauss_newton(subject: Subject) -> tuple[str, _Product]:
    name = "generalized_gauss_newton_product"
    return name, getattr(ability(subject, GeneralizedGaussNewton), name)


def _check_product(subject: Subject, name: str, product: _Product, matrix: Host) -> None:
    batch, rule = subject.batch(), f"v times the mean over the points, {_BLOCK}"
    for names in subject.selections:
        place = subject.columns(names)
        for k in subject.counts(names):
            v, array = subject.random(k, place.size)
            want = v @ matrix[np.ix_(place, place)]
            got = product(batch, array, names)
            require_close(got, want, subject, f"{name}(batch, v, {names})", rule)


def _check_symmetry(subject: Subject, name: str, product: _Product) -> None:
    (u, u_array), (v, v_array) = (
        subject.random(subject.many, subject.size, seed=s) for s in (0, 1)
    )
    batch, names = subject.batch(), subject.names
    left = on_host(product(batch, u_array, names)) @ v.T
    right = u @ on_host(product(batch, v_array, names)).T
    tolerance = subject.size * rounding(subject.problem.reference)
    rule = f"`{name}` must be symmetric: uᵀ(v · matrix) = vᵀ(u · matrix)"
    require_numbers(left, right, rule, tolerance)


def _check_linearity(subject: Subject, name: str, product: _Product) -> None:
    (_, u), (_, v) = (subject.random(subject.many, subject.size, seed=s) for s in (0, 1))
    batch, names = subject.batch(), subject.names
    parts = 2 * on_host(product(batch, u, names)) - on_host(product(batch, v, names))
    tolerance = 10 * rounding(subject.problem.reference)
    whole = on_host(product(batch, 2 * u - v, names))
    require_numbers(whole, parts, f"`{name}` must be linear in v", tolerance)
    nothing = on_host(product(batch, 0 * v, names))
    require_numbers(nothing, 0 * parts, f"`{name}` of v = 0 must be zero", tolerance)


def _check_quadratics(
    subject: Subject, name: str, quadratics: Callable[..., Array], matrices: Host
) -> None:
    for names in subject.selections:
        place = subject.columns(names)
        v, array = subject.random(subject.points, place.size)
        want = np.einsum("na,nab,nb->n", v, matrices[:, place][:, :, place], v)
        got = quadratics(subject.batch(), array, names)
        rule = "for every point its own vector, its own matrix and its vector again"
        require_close(got, want, subject, f"{name}(batch, v, {names})", rule)


def _check_single_points(
    subject: Subject, name: str, quadratics: Callable[..., Array], product: _Product
) -> None:
    v, array = subject.random(subject.points, subject.size)
    got = on_host(quadratics(subject.batch(), array, subject.names))
    rule = f"`{name}` must be v times the product of its point alone with v, in full precision"
    tolerance = 10 * rounding(subject.problem.reference)
    for at in range(subject.points):
        point = slice(at, at + 1)
        row = on_host(product(subject.part(at, at + 1), array[point, :], subject.names))
        want = np.sum(row * v[point], axis=1)
        require_numbers(got[point], want, rule, tolerance * subject.size)
