"""Checks of the per-sample gradients and of their products."""

from __future__ import annotations

from influence_core.testing.conformance.expect import require_close, sheltered
from influence_core.testing.conformance.problem_checks import weighted_batch
from influence_core.testing.conformance.subject import Subject

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
            for k in subject.counts(names, rows.shape[1]):
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
            for k in subject.counts(names, subject.points):
                w, array = subject.random(k, subject.points)
                got = subject.problem.gradient_combinations(batch, array, names)
                call = f"gradient_combinations(batch, w, {names})"
                require_close(got, w @ rows, subject, call, rule)

    @sheltered
    def test_points_are_independent(self, subject: Subject) -> None:
        """A point has the same gradient in whatever batch it comes."""
        names, n = subject.names, subject.points
        rule = "the gradients that these points have in any other batch"
        for start, stop in ((0, 2), (2, n), (n - 1, n)):
            batch, want = subject.part(start, stop), subject.truth.gradients[start:stop]
            call = f"gradients(points {start} to {stop}, names)"
            require_close(subject.problem.gradients(batch, names), want, subject, call, rule)
            v, array = subject.random(2, subject.size)
            got = subject.problem.gradient_products(batch, array, names)
            call = f"gradient_products(points {start} to {stop}, v, names)"
            require_close(got, v @ want.T, subject, call, rule)

    @sheltered
    def test_weights_leave_gradients_alone(self, subject: Subject) -> None:
        """Weights belong to means over a batch; a gradient belongs to a point."""
        batch, _ = weighted_batch(subject)
        names, want = subject.names, subject.truth.gradients
        rule = "unweighted numbers: weights enter means over the batch only"
        got = subject.problem.gradients(batch, names)
        require_close(got, want, subject, "gradients(weighted batch, names)", rule)
        v, array = subject.random(2, subject.size)
        got = subject.problem.gradient_products(batch, array, names)
        call = "gradient_products(weighted batch, v, names)"
        require_close(got, v @ want.T, subject, call, rule)
        w, array = subject.random(2, subject.points)
        got = subject.problem.gradient_combinations(batch, array, names)
        call = "gradient_combinations(weighted batch, w, names)"
        require_close(got, w @ want, subject, call, rule)
