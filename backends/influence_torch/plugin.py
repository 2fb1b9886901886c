"""The torch backend, as the registry finds it; imports no torch."""

from __future__ import annotations

from influence_core.plugins import BackendSpec, hookimpl


@hookimpl
def influence_backends() -> BackendSpec:
    """Declare the backend of torch modules."""
    return BackendSpec(
        name="torch",
        factory="influence_torch.problem:TorchProblem",
        model_types=("torch.nn.modules.module.Module",),
        api_version=1,
        requires='pip install "influence-core[torch]"',
    )
