"""Derivatives by central differences of fourth order, from nothing but the losses.

    f'(t) ≈ (8 f(t + h) - 8 f(t - h) - f(t + 2h) + f(t - 2h)) / 12h

is off by `h⁴ f⁽⁵⁾ / 30`; second derivatives apply it twice. In float64 with the step `h = 2e-3` and
losses, parameters and inputs near one, first derivatives come out to 1e-12 and second ones to 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from influence_core.arrays import map_tree
from influence_core.errors import LossError
from influence_core.problem import Tree
from influence_core.testing.conformance.oracles import Derivatives, Host, Values
from influence_core.testing.conformance.trees import leaves, replaced

STEP = 2e-3
"""`h`, for numbers near one."""

_STENCIL = ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12))

_Losses: TypeAlias = Callable[[Host, Tree], Host]
"""`(θ, x) ↦ (n,)` with the parameters as one vector `(p,)`."""


@dataclass(frozen=True)
class FiniteDifferences:
    """The derivatives of losses that are written in NumPy.

    Attributes:
        losses: `(parameters, x, y) ↦ ℓ`, `(n,)`, the loss of each point alone. `parameters` maps
            names to float64 arrays; `x` and `y` have the form of the subject's data, on the host,
            floating-point numbers in float64.
        outputs: `(parameters, x) ↦ f`, `(n, *)`; with `output_losses` it gives the generalised
            Gauss–Newton matrix. None leaves that out.
        output_losses: `(f, y) ↦ ℓ`, `(n,)`, so that `losses` is one after the other.
        step: `h`, for parameters, inputs and outputs alike: choose a model in which they are near
            one, and losses without kinks.

    Raises:
        LossError: `losses` returns something else than one finite number a point.
    """

    losses: Callable[[Values, Tree, Tree], Host]
    outputs: Callable[[Values, Tree], Host] | None = None
    output_losses: Callable[[Host, Tree], Host] | None = None
    step: float = STEP

    def derivatives(self, parameters: Values, x: Tree, y: Tree) -> Derivatives:
        """Return the derivatives; this evaluates `losses` about `8 p²` times."""
        theta = flatten(parameters)

        def losses(theta: Host, x: Tree) -> Host:
            return _checked(self.losses(unflatten(theta, parameters), x, y), len(leaves(x)[0]))

        return Derivatives(
            first_derivatives(lambda theta: losses(theta, x), theta, self.step),
            second_derivatives(lambda theta: losses(theta, x), theta, self.step),
            self._mixed(losses, theta, x),
            self._gauss_newton(parameters, theta, x, y),
        )

    def _mixed(self, losses: _Losses, theta: Host, x: Tree) -> Tree:
        parts: list[Host | None] = []
        for position, leaf in enumerate(leaves(x)):
            if leaf.dtype.kind != "f":
                parts.append(None)
                continue
            flat = leaf.reshape(leaf.shape[0], -1)

            # the loss of a point depends on its own input only: all points move together
            def gradients(
                move: Host, position: int = position, leaf: Host = leaf, flat: Host = flat
            ) -> Host:
                moved = replaced(x, position, (flat + move).reshape(leaf.shape))
                return first_derivatives(lambda theta: losses(theta, moved), theta, self.step)

            mixed = first_derivatives(gradients, np.zeros(flat.shape[1]), self.step)
            parts.append(np.moveaxis(mixed, -1, 1).reshape(*leaf.shape, theta.size))
        each = iter(parts)
        return map_tree(lambda _: next(each), x)

    def _gauss_newton(self, parameters: Values, theta: Host, x: Tree, y: Tree) -> Host | None:
        if self.outputs is None or self.output_losses is None:
            return None
        outputs, losses = self.outputs, self.output_losses
        f = np.asarray(outputs(parameters, x), dtype=np.float64)
        flat = f.reshape(f.shape[0], -1)

        def forward(theta: Host) -> Host:
            return np.asarray(outputs(unflatten(theta, parameters), x)).reshape(flat.shape)

        jacobians = first_derivatives(forward, theta, self.step)
        bends = second_derivatives(
            lambda move: np.asarray(losses((flat + move).reshape(f.shape), y)),
            np.zeros(flat.shape[1]),
            self.step,
        )
        answer: Host = np.einsum("nop,noq,nqr->npr", jacobians, bends, jacobians)
        return answer


def first_derivatives(fn: Callable[[Host], Host], at: Host, step: float = STEP) -> Host:
    """Return the derivatives of `fn` in every coordinate of `at`, on a new last axis."""
    moves = step * np.eye(at.size)
    slopes = [sum(c * fn(at + s * move) for s, c in _STENCIL) / step for move in moves]
    return np.stack([np.asarray(slope) for slope in slopes], axis=-1)


def second_derivatives(fn: Callable[[Host], Host], at: Host, step: float = STEP) -> Host:
    """Return the second derivatives of `fn`, `(n,)`, at `at`, `(d,)`, as `(n, d, d)`."""
    moves, rows = step * np.eye(at.size), np.zeros((at.size, at.size, fn(at).size))
    for i in range(at.size):
        for j in range(i + 1):
            terms = [
                a * b * fn(at + s * moves[i] + t * moves[j])
                for s, a in _STENCIL
                for t, b in _STENCIL
            ]
            rows[i, j] = rows[j, i] = np.sum(terms, axis=0) / step**2
    return np.moveaxis(rows, -1, 0)


def flatten(values: Values) -> Host:
    """Return the parameters as one vector, `(p,)`."""
    return np.concatenate([np.ravel(value) for value in values.values()])


def unflatten(theta: Host, like: Values) -> dict[str, Host]:
    """Return the parameters by name from one vector."""
    answer, start = {}, 0
    for name, value in like.items():
        stop = start + math.prod(value.shape)
        answer[name] = theta[start:stop].reshape(value.shape)
        start = stop
    return answer


def _checked(losses: Host, points: int) -> Host:
    losses = np.asarray(losses, dtype=np.float64)
    if losses.shape != (points,) or not np.all(np.isfinite(losses)):
        raise LossError(
            f"`FiniteDifferences(losses)`: `losses(parameters, x, y)` must return a finite number "
            f"for each of the {points} points, ({points},); got {losses.shape}: {losses}. Leave "
            "out the mean over the points, and choose a model for which the losses are finite."
        )
    return losses
