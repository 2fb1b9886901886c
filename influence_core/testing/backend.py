"""The closed forms as a backend: `Influence(model, None, method, backend=BACKEND)`.

No entry point declares it, so that it is never found by itself.
"""

from __future__ import annotations

from influence_core.plugins import BackendSpec

BACKEND = BackendSpec(
    name="closed-form",
    factory="influence_core.testing.problem:ClosedFormProblem",
    model_types=tuple(
        f"influence_core.testing.models.{name}"
        for name in ("LeastSquares", "Logistic", "TanhNetwork")
    ),
    api_version=1,
)
