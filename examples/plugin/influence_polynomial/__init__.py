"""A polynomial regression, and the backend that gives it influence functions."""

from influence_polynomial.model import PolynomialRegression

__all__ = ["PolynomialRegression"]
