"""The model. It knows nothing of influence functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ExplicitModel:
    """A trained model whose loss is known by its derivatives.

    `theta` is all parameters in one vector of `p` numbers, in the order of `parameters`; `x` and
    `y` hold `n` points along their first axes. `ℓᵢ` is the loss of one point.

    Attributes:
        parameters: name to array.
        gradients: `(theta, x, y) ↦ ∇ℓᵢ`, `(n, p)`.
        hessians: `(theta, x, y) ↦ ∇²ℓᵢ`, `(n, p, p)`.
        mixed: `(theta, x, y) ↦ ∇ₓ∇θℓᵢ`, `(n, *x.shape[1:], p)`.
    """

    parameters: Mapping[str, np.ndarray]
    gradients: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    hessians: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    mixed: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
