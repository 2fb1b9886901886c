"""Declares the backend; imports neither it nor NumPy."""

from influence_core.plugins import BackendSpec, hookimpl


@hookimpl
def influence_backends() -> BackendSpec:
    """Declare the backend of `PolynomialRegression`."""
    return BackendSpec(
        name="polynomial",
        factory="influence_polynomial.problem:PolynomialProblem",
        model_types=("influence_polynomial.model.PolynomialRegression",),
        api_version=1,
    )
