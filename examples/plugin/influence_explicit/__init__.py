"""Models that bring their derivatives along, and their backend of influence functions."""

from influence_explicit.model import ExplicitModel
from influence_explicit.poisson import poisson_regression

__all__ = ["ExplicitModel", "poisson_regression"]
