"""The JAX backend, as the registry finds it; imports no JAX."""

from __future__ import annotations

from influence_core.plugins import BackendSpec, hookimpl


@hookimpl
def influence_backends() -> BackendSpec:
    """Declare the backend of JAX functions."""
    return BackendSpec(
        name="jax",
        factory="influence_jax.problem:JaxProblem",
        model_types=("influence_jax.model.Model",),
        api_version=1,
        requires='pip install "influence-core[jax]"',
    )
