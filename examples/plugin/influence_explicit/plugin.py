"""Declares the backend; imports neither it nor NumPy."""

from influence_core.plugins import BackendSpec, hookimpl


@hookimpl
def influence_backends() -> BackendSpec:
    """Declare the backend of `ExplicitModel`."""
    return BackendSpec(
        name="explicit",
        factory="influence_explicit.problem:ExplicitProblem",
        model_types=("influence_explicit.model.ExplicitModel",),
        api_version=1,
    )
