"""Squared error: every output is the mean of a normal distribution.

With `w` the share of the output in the loss of its point, `w (f - y)²` is the negative logarithm of
a density with the variance `1/(2w)`. The gradient in the output is `2w (f - y)`: normal, with the
standard deviation `√(2w)`. At expected labels the Fisher matrix is the generalised Gauss–Newton
matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_torch.likelihoods.base import Independent


@dataclass(frozen=True)
class Gaussian(Independent):
    """The distribution that a squared error belongs to."""

    def deviation(self, outputs: Tensor, share: float) -> Tensor:
        """Return `√(2w)`."""
        return torch.full_like(outputs, math.sqrt(2 * share))

    def gradients(self, outputs: Tensor, share: float, uniforms: Tensor) -> Tensor:
        """Return `√(2w) z`, with the normal number `z` that a uniform is the probability under."""
        tiny = torch.finfo(uniforms.dtype).eps / 4
        return math.sqrt(2 * share) * torch.special.ndtri(uniforms.clamp(tiny, 1 - 2 * tiny))
