"""Checks of the derivatives in the inputs."""

from __future__ import annotations

import numpy as np

from influence_core.arrays import map_tree
from influence_core.testing.conformance.calls import has_inputs
from influence_core.testing.conformance.expect import require_tree, sheltered, skip
from influence_core.testing.conformance.oracles import Host
from influence_core.testing.conformance.subject import Subject


class MixedChecks:
    """`mixed_gradient_products`."""

    @sheltered
    def test_mixed_gradient_products(self, subject: Subject) -> None:
        """`∇ₓ⟨v, ∇θℓᵢ⟩`, for any list of names, in the shape or tree of `x`."""
        _skip_without_inputs(subject)
        rule = "∇ₓ⟨v, ∇θℓᵢ⟩ of every point alone, (k, n, *x.shape[1:])"
        for names in subject.selections:
            place = subject.columns(names)
            for k in subject.counts(names, place.size):
                v, array = subject.random(k, place.size)

                def along(leaf: Host, place: Host = place, v: Host = v) -> Host:
                    return np.moveaxis(leaf[..., place] @ v.T, -1, 0)

                want = map_tree(along, subject.truth.mixed)
                got = subject.problem.mixed_gradient_products(subject.batch(), array, names)
                call = f"mixed_gradient_products(batch, v, {names})"
                require_tree(got, want, subject, call, rule)

    @sheltered
    def test_mixed_products_belong_to_points(self, subject: Subject) -> None:
        """A point has the same derivatives in whatever batch it comes."""
        _skip_without_inputs(subject)
        v, array = subject.random(2, subject.size)
        n = subject.points
        for start, stop in ((1, 2), (2, n)):
            want = map_tree(
                lambda leaf, start=start, stop=stop: np.moveaxis(leaf[start:stop] @ v.T, -1, 0),
                subject.truth.mixed,
            )
            batch = subject.part(start, stop)
            got = subject.problem.mixed_gradient_products(batch, array, subject.names)
            call = f"mixed_gradient_products(points {start} to {stop}, v, names)"
            rule = "∇ₓ⟨v, ∇θℓᵢ⟩, not divided by the number of points"
            require_tree(got, want, subject, call, rule)


def _skip_without_inputs(subject: Subject) -> None:
    if not has_inputs(subject):
        skip("`x` holds integers only: there is nothing to differentiate in")
