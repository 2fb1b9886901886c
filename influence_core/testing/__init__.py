"""For authors of backends and methods: models whose derivatives are known in closed form.

They run on any library that follows the array API standard and need no automatic differentiation::

    from influence_core.testing import ClosedFormProblem, Logistic

    problem = ClosedFormProblem(Logistic.random(4, 3))
    batch = problem.batch((x, labels))
    problem.gradients(batch, ["weight", "bias"])

`BackendConformance` holds the checks that every backend must pass.
"""

from influence_core.testing.backend import BACKEND
from influence_core.testing.batch import ClosedFormBatch
from influence_core.testing.conformance import (
    BackendConformance,
    ClosedForm,
    Derivatives,
    FiniteDifferences,
    Oracle,
    Subject,
)
from influence_core.testing.losses import BinaryCrossEntropy, CrossEntropy, Loss, Squared
from influence_core.testing.models import LeastSquares, Logistic, Model, TanhNetwork
from influence_core.testing.problem import ClosedFormProblem

__all__ = [
    "BACKEND",
    "BackendConformance",
    "BinaryCrossEntropy",
    "ClosedForm",
    "ClosedFormBatch",
    "ClosedFormProblem",
    "CrossEntropy",
    "Derivatives",
    "FiniteDifferences",
    "LeastSquares",
    "Logistic",
    "Loss",
    "Model",
    "Oracle",
    "Squared",
    "Subject",
    "TanhNetwork",
]
