"""Backends with fewer or more abilities than the closed forms have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from influence_core.plugins import BackendSpec
from influence_core.testing import BACKEND, ClosedFormProblem


class BareProblem:
    """What `Problem` asks for, and no further protocol."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        problem = ClosedFormProblem(*arguments, **options)
        self.reference = problem.reference
        self.parameters = problem.parameters
        self.batch = problem.batch
        self.gradients = problem.gradients
        self.gradient_products = problem.gradient_products
        self.gradient_combinations = problem.gradient_combinations
        self.hessian_product = problem.hessian_product
        self.mixed_gradient_products = problem.mixed_gradient_products


class CourteousProblem(ClosedFormProblem):
    """Reads data its own way, dicts of `x` and `y`, and hands answers over in float32."""

    def batches(self, data: Any) -> Iterator[Any]:
        return (self.batch((item["x"], item["y"])) for item in data)

    def hand_over(self, answer: Any) -> Any:
        return answer.astype(np.float32)


def _spec(name: str) -> BackendSpec:
    return BackendSpec(name, f"{__name__}:{name}", BACKEND.model_types)


BARE = _spec("BareProblem")
COURTEOUS = _spec("CourteousProblem")
