"""Checks of the derivatives in the inputs."""

from __future__ import annotations

import numpy as np

from influence_core.arrays import map_tree
from influence_core.testing.conformance.calls import has_inputs
from influence_core.testing.conformance.expect import (
    require_same,
    require_tree,
    rounding,
    sheltered,
    skip,
)
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import on_host


class MixedChecks:
    """`mixed_gradient_products`."""

    @sheltered
    def test_mixed_gradient_products(self, subject: Subject) -> None:
        """`∇ₓ⟨v, ∇θℓᵢ⟩`, for any list of names, in the shape or tree of `x`."""
        _skip_without_inputs(subject)
        rule = "∇ₓ⟨v, ∇θℓᵢ⟩ of every point alone, (k, n, *x.shape[1:])"
        for names in subject.selections:
            place = subject.columns(names)
            for k in subject.counts(names):
                v, array = subject.random(k, place.size)

                def along(leaf: Host, place: Host = place, v: Host = v) -> Host:
                    return np.moveaxis(leaf[..., place] @ v.T, -1, 0)

                want = map_tree(along, subject.truth.mixed)
                got = subject.problem.mixed_gradient_products(subject.batch(), array, names)
                call = f"mixed_gradient_products(batch, v, {names})"
                require_tree(got, want, subject, call, rule)

    @sheltered
    def test_mixed_products_are_linear(self, subject: Subject) -> None:
        """`∇ₓ⟨2u - v, ∇θℓᵢ⟩ = 2∇ₓ⟨u, ∇θℓᵢ⟩ - ∇ₓ⟨v, ∇θℓᵢ⟩`."""
        _skip_without_inputs(subject)
        (_, u), (_, v) = (subject.random(subject.many, subject.size, seed=seed) for seed in (0, 1))
        whole, first, second = (
            on_host(subject.problem.mixed_gradient_products(subject.batch(), each, subject.names))
            for each in (2 * u - v, u, v)
        )
        want = map_tree(lambda a, b: 2 * a - b, first, second)
        tolerance = 10 * rounding(subject.problem.reference)
        require_same(whole, want, "`mixed_gradient_products` must be linear in v", tolerance)


def _skip_without_inputs(subject: Subject) -> None:
    if not has_inputs(subject):
        skip("`x` holds integers only: there is nothing to differentiate in")
