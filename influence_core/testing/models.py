"""Three models whose derivatives are known in closed form.

They hold parameters and nothing else; `ClosedFormProblem` knows what to do with them. Random ones
are drawn by NumPy on the host, so that every array library gets the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from influence_core.arrays import from_host
from influence_core.problem import Array
from influence_core.testing.chain import Layer
from influence_core.testing.losses import Loss


class Model(Protocol):
    """Affine layers, one after the other, with tanh between them."""

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Name to array, in the order of the columns; a bias may be missing."""
        ...

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers, first to last."""
        ...

    @property
    def loss(self) -> str | Loss:
        """The name of a loss, or the loss itself."""
        ...


@dataclass(frozen=True)
class LeastSquares:
    """`f = x Wᵀ + b` with the loss `½ ‖f - y‖²`.

    Attributes:
        parameters: ``"weight"`` `(o, i)` and, if there is one, ``"bias"`` `(o,)`.
    """

    parameters: dict[str, Array]
    layers: ClassVar[tuple[Layer, ...]] = (Layer.of(""),)
    loss: ClassVar[str] = "squared"

    @classmethod
    def random(
        cls, inputs: int, outputs: int, *, seed: int = 0, like: Array | None = None
    ) -> LeastSquares:
        """Draw a model; `like` gives the library, dtype and device (None: NumPy, float64)."""
        return cls(_draw(cls.layers, (inputs, outputs), seed, like))


@dataclass(frozen=True)
class Logistic:
    """`f = x Wᵀ + b` with the cross-entropy of `softmax(f)` and integer labels.

    Attributes:
        parameters: ``"weight"`` `(o, i)` and, if there is one, ``"bias"`` `(o,)`; `o` classes.
    """

    parameters: dict[str, Array]
    layers: ClassVar[tuple[Layer, ...]] = (Layer.of(""),)
    loss: ClassVar[str] = "cross_entropy"

    @classmethod
    def random(
        cls, inputs: int, classes: int, *, seed: int = 0, like: Array | None = None
    ) -> Logistic:
        """Draw a model; `like` gives the library, dtype and device (None: NumPy, float64)."""
        return cls(_draw(cls.layers, (inputs, classes), seed, like))


@dataclass(frozen=True)
class TanhNetwork:
    """`f = tanh(x W₁ᵀ + b₁) W₂ᵀ + b₂`; its Hessian is indefinite in general.

    Attributes:
        parameters: ``"hidden.weight"`` `(h, i)`, ``"hidden.bias"`` `(h,)`, ``"output.weight"``
            `(o, h)`, ``"output.bias"`` `(o,)`; either bias may be missing.
        loss: ``"squared"`` or ``"cross_entropy"``.
    """

    parameters: dict[str, Array]
    loss: str = "squared"
    layers: ClassVar[tuple[Layer, ...]] = (Layer.of("hidden"), Layer.of("output"))

    @classmethod
    def random(
        cls,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        loss: str = "squared",
        seed: int = 0,
        like: Array | None = None,
    ) -> TanhNetwork:
        """Draw a model; `like` gives the library, dtype and device (None: NumPy, float64)."""
        return cls(_draw(cls.layers, (inputs, hidden, outputs), seed, like), loss)


def _draw(
    layers: Sequence[Layer], sizes: Sequence[int], seed: int, like: Array | None
) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    like = np.zeros(()) if like is None else like
    parameters = {}
    for layer, (i, o) in zip(layers, itertools.pairwise(sizes), strict=True):
        parameters[layer.weight] = from_host(rng.standard_normal((o, i)) / np.sqrt(i), like)
        parameters[layer.bias] = from_host(rng.standard_normal(o) / 4, like)
    return parameters
