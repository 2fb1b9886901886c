"""How far the parameters are from a minimum of the objective that influence functions assume.

The derivation of an influence expands the objective at its minimum. How far away that is shows in
`‖∇ mean ℓ + λθ‖`: zero at the minimum of the loss plus `λ/2 ‖θ‖²`. The gradient is summed while
`fit` reads the data for the first time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from influence_core.arrays import (
    device,
    move,
    namespace,
    ones,
    read_float,
    row_norms,
    to_host,
    zeros,
)
from influence_core.blocks import Block
from influence_core.errors import OptimalityWarning, warn
from influence_core.problem import Array, Batch, HasPenalty, HasValues, Problem
from influence_core.restoring import remade

# At a minimum the gradients of the points cancel. Of those of an untrained digits MLP a part of
# 0.12 is left, of a trained one 0.05 to 0.1.
_FAR = 0.1
# A sample of the training data has a mean gradient of its own: so many standard errors are allowed.
_STANDARD_ERRORS = 3.0
# points whose own gradients are the measure of length
_MEASURED = 32


@dataclass(frozen=True)
class Optimality:
    """What `fit` saw of the gradient of the objective, in the columns of all blocks.

    Attributes:
        blocks: the blocks.
        gradient: `∇ mean ℓ`, with the penalty that belongs to the objective, `(1, p)`.
        values: the parameters `θ`, `(1, p)`; zeros where the backend does not hand them out.
        length: the root mean square of `‖∇ℓᵢ‖` over a sample of the points.
        points: the number `N` of points.
    """

    blocks: tuple[Block, ...] = field(metadata=remade(lambda at: at.blocks))
    gradient: Array
    values: Array = field(metadata=remade(lambda at: _values(at.problem, at.blocks)))
    length: float
    points: int

    def gradient_norm(self, regularization: Mapping[str, float]) -> float:
        """Return `‖∇ mean ℓ + λθ‖` for the λ of every block."""
        parts, start = [], 0
        for block in self.blocks:
            part = slice(start, start + block.size)
            parts.append(self.gradient[:, part] + self.values[:, part] * regularization[block.name])
            start += block.size
        return read_float(row_norms(namespace(self.gradient).concat(parts, axis=1))[0])

    def tell(self, regularization: Mapping[str, float]) -> None:
        """Warn if the parameters are far from a minimum, with the given λ and without any."""
        norm = self.gradient_norm(regularization)
        plain = self.gradient_norm(dict.fromkeys(regularization, 0.0))
        far = max(_FAR, _STANDARD_ERRORS / math.sqrt(self.points))
        if min(norm, plain) > far * self.length:
            warn(
                f"`fit`: the model is far from a minimum of its training loss: ‖∇ mean ℓ + λθ‖ is "
                f"{norm:.2e} ({plain:.2e} without λθ), where the gradient of a single point has a "
                f"length of {self.length:.2e}. Influence functions describe a trained model: train "
                "it further, or fit on the data and with the loss that it was trained with.",
                OptimalityWarning,
            )

    def on(self, reference: Array) -> Optimality:
        """Return the same on the device of `reference`."""
        target = device(reference)
        moved = move(self.gradient, target), move(self.values, target)
        return replace(self, gradient=moved[0], values=moved[1])


class Gauge:
    """Sums the gradient of the objective, batch by batch, and samples those of single points."""

    def __init__(self, problem: Problem, blocks: tuple[Block, ...]) -> None:
        """Start for the parameters that the blocks cover."""
        self._problem, self._blocks = problem, blocks
        self._names = _names(blocks)
        self._sum: Array | None = None
        self._seen = 0
        self._lengths: dict[int, Array] = {}  # place in the sample -> (1,), read once at the end
        self._random = np.random.default_rng(0)

    def see(self, batch: Batch) -> None:
        """Add the gradients of the points of a batch."""
        like = self._problem.reference
        weights = ones((1, batch.size), like)
        if batch.weights is not None:
            weights = weights * namespace(like).astype(batch.weights, like.dtype)
        gradient = self._problem.gradient_combinations(batch, weights, self._names)
        self._sum = gradient if self._sum is None else self._sum + gradient
        for place, index in self._sample(batch.size).items():
            self._lengths[place] = self._length(batch[index : index + 1])

    def reading(self, points: int, weight: float) -> Optimality:
        """Return what the batches showed, `points` points whose weights sum to `weight`."""
        assert self._sum is not None  # an objective has at least one point
        problem, values = self._problem, _values(self._problem, self._blocks)
        gradient = self._sum / weight
        if isinstance(problem, HasValues) and isinstance(problem, HasPenalty):
            gradient = gradient + problem.penalty(self._names, weight) * values
        lengths = to_host(namespace(gradient).concat(list(self._lengths.values())))
        length = float(np.linalg.norm(lengths)) / math.sqrt(lengths.size)
        return Optimality(self._blocks, gradient, values, length, points)

    def _sample(self, size: int) -> dict[int, int]:
        """Return place -> index of the points of a batch that join the sample.

        Every point that was seen is in it with the same probability, in whatever order they come
        (Vitter, Random sampling with a reservoir, ACM TOMS 11, 1985).
        """
        chosen = {}
        for index in range(size):
            place = self._seen
            if place >= _MEASURED:
                place = int(self._random.integers(0, self._seen + 1))
            if place < _MEASURED:
                chosen[place] = index
            self._seen += 1
        return chosen

    def _length(self, point: Batch) -> Array:
        one = ones((1, 1), self._problem.reference)
        return row_norms(self._problem.gradient_combinations(point, one, self._names))


def _names(blocks: tuple[Block, ...]) -> list[str]:
    return [name for block in blocks for name in block.names]


def _values(problem: Problem, blocks: tuple[Block, ...]) -> Array:
    """Return the parameters, `(1, p)`; zeros where the backend does not hand them out."""
    if isinstance(problem, HasValues):
        return problem.values(_names(blocks))[None, :]
    return zeros((1, sum(block.size for block in blocks)), problem.reference)
