"""The model. It knows nothing of influence functions."""

import numpy as np


class PolynomialRegression:
    """The least-squares polynomial `f(x) = intercept + Σⱼ slopes[j] xʲ⁺¹`."""

    def __init__(self, degree: int) -> None:
        """Make an unfitted polynomial with one intercept and `degree` slopes."""
        self.degree = degree

    def fit(self, x: np.ndarray, y: np.ndarray) -> "PolynomialRegression":
        """Minimise the squared error over the points `x` and `y`, both `(n,)`."""
        coefficients = np.polynomial.polynomial.polyfit(x, y, self.degree)
        self.intercept, self.slopes = coefficients[:1], coefficients[1:]
        return self
