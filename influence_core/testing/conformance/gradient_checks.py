"""Checks of the per-sample gradients and of their products."""

from __future__ import annotations

from influence_core.testing.conformance.calls import arguments
from influence_core.testing.conformance.expect import (
    require_close,
    require_same,
    rounding,
    sheltered,
)
from influence_core.testing.conformance.subject import Subject
from influence_core.testing.conformance.trees import on_host

_ORDER = "columns in the order of `names`, row-major inside a parameter"


class GradientChecks:
    """`gradients`, `gradient_products` and `gradient_combinations` against the oracle."""

    @sheltered
    def test_gradients(self, subject: Subject) -> None:
        """`∇ℓᵢ` of each point alone, for any list of names."""
        batch, rule = subject.batch(), f"∇ℓᵢ of every point alone, not divided by n, {_ORDER}"
        for names in subject.selections:
            got = subject.problem.gradients(batch, names)
            want = subject.truth.gradients[:, subject.columns(names)]
            require_close(got, want, subject, f"gradients(batch, {names})", rule)

    @sheltered
    def test_gradient_products(self, subject: Subject) -> None:
        """`v · gradientsᵀ` for one vector and for more vectors than parameters."""
        batch, rule = subject.batch(), f"v · gradientsᵀ, {_ORDER}"
        for names in subject.selections:
            rows = subject.truth.gradients[:, subject.columns(names)]
            for k in subject.counts(names):
                v, array = subject.random(k, rows.shape[1])
                got = subject.problem.gradient_products(batch, array, names)
                call = f"gradient_products(batch, v, {names})"
                require_close(got, v @ rows.T, subject, call, rule)

    @sheltered
    def test_gradient_combinations(self, subject: Subject) -> None:
        """`w · gradients` for one row and for more rows than points."""
        batch, rule = subject.batch(), f"w · gradients, a sum and no mean, {_ORDER}"
        for names in subject.selections:
            rows = subject.truth.gradients[:, subject.columns(names)]
            for k in subject.counts(names):
                w, array = subject.random(k, subject.points)
                got = subject.problem.gradient_combinations(batch, array, names)
                call = f"gradient_combinations(batch, w, {names})"
                require_close(got, w @ rows, subject, call, rule)

    @sheltered
    def test_gradients_explain_their_products(self, subject: Subject) -> None:
        """To the last digit that the dtype has: nothing is computed in a shorter one."""
        a, tolerance = arguments(subject), 10 * rounding(subject.problem.reference)
        problem, batch, names = subject.problem, a.batch, a.names
        rows = on_host(problem.gradients(batch, names))
        for call, got, want in (
            (
                "gradient_products",
                problem.gradient_products(batch, a.v, names),
                on_host(a.v) @ rows.T,
            ),
            (
                "gradient_combinations",
                problem.gradient_combinations(batch, a.w, names),
                on_host(a.w) @ rows,
            ),
        ):
            rule = (
                f"`{call}` must be products with the rows of `gradients` in the full precision of "
                "`problem.reference`"
            )
            require_same(got, want, rule, tolerance)
