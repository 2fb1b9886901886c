"""The scikit-learn backend, as the registry finds it; imports no scikit-learn."""

from __future__ import annotations

from influence_core.plugins import BackendSpec, hookimpl


@hookimpl
def influence_backends() -> BackendSpec:
    """Declare the backend of fitted linear models and of pipelines that end in one."""
    return BackendSpec(
        name="sklearn",
        factory="influence_sklearn.problem:SklearnProblem",
        model_types=(
            "sklearn.linear_model._base.LinearRegression",
            "sklearn.linear_model._logistic.LogisticRegression",
            "sklearn.linear_model._ridge.Ridge",
            "sklearn.pipeline.Pipeline",
        ),
        api_version=1,
        requires='pip install "influence-core[sklearn]"',
    )
