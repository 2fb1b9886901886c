"""Derivatives of the losses of some points, as functions that JAX traces.

With `L(θ) = (ℓ₁, …, ℓₙ)`: `products` pushes `v` forward through `L`, `combinations` pulls `w` back,
`hessian` pushes `v` through `∇ mean L` (Pearlmutter, Fast exact multiplication by the Hessian,
Neural Computation 6, 1994), `gauss_newton_product` pushes `v` through the outputs and the gradient
of the loss in them, and pulls it back, and `mixed` takes the gradient in `x` of the slope along
`v`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from influence_core.errors import ModelError
from influence_jax.losses import PointLosses
from influence_jax.snapshot import split_floats, with_floats
from influence_jax.vectors import Layout

Parameters: TypeAlias = Mapping[str, Array]

Rows: TypeAlias = Callable[[Any, int], int]
"""`(x, points of a row)` ↦ how many rows fit into memory."""


@dataclass(frozen=True)
class Products:
    """Products with the derivatives in the parameters of one block.

    Attributes:
        losses: of the points.
        layout: the parameters of the block.
        rows: how many rows may be computed at once.
    """

    losses: PointLosses
    layout: Layout
    rows: Rows

    def gradients(self, parameters: Parameters, x: Any, y: Any) -> Array:
        """Return the per-sample gradients, `(n, d)`."""

        def one(pair: tuple[Any, Any]) -> Array:
            loss = _of_block(parameters, lambda p: self.losses.point(p, *pair))
            return self.layout.join(jax.grad(loss)(self.layout.pick(parameters)))

        return each(one, (x, y), self.rows(x, 1))

    def combinations(self, parameters: Parameters, x: Any, y: Any, w: Array) -> Array:
        """Return `w · gradients`, `(k, d)`."""
        vector = _of_block(parameters, lambda p: self.losses.vector(p, x, y))
        losses, pull = jax.vjp(vector, self.layout.pick(parameters))
        w = w.astype(losses.dtype)
        return each(lambda row: self.layout.join(pull(row)[0]), w, self.rows(x, count(x)))

    def products(self, parameters: Parameters, x: Any, y: Any, v: Array) -> Array:
        """Return `v · gradientsᵀ`, `(k, n)`."""
        vector = _of_block(parameters, lambda p: self.losses.vector(p, x, y))
        _, push = jax.linearize(vector, self.layout.pick(parameters))
        answers = each(lambda row: push(self.layout.split(row)), v, self.rows(x, count(x)))
        return answers.astype(v.dtype)

    def hessian(self, parameters: Parameters, x: Any, y: Any) -> Callable[..., Any]:
        """Return `v ↦ v · ∇²(mean ℓ)` for one vector, by name, with the forward work done."""
        mean = _of_block(parameters, lambda p: self.losses.vector(p, x, y).mean())
        return jax.linearize(jax.grad(mean), self.layout.pick(parameters))[1]

    def hessian_product(self, parameters: Parameters, x: Any, y: Any, v: Array) -> Array:
        """Return `v · ∇²(mean ℓ)`, `(k, d)`."""
        return self.pushed(self.hessian(parameters, x, y), x, v)

    def pushed(self, push: Callable[..., Any], x: Any, v: Array) -> Array:
        """Return `push` of every row, `(k, d)`."""
        return each(
            lambda row: self.layout.join(push(self.layout.split(row))), v, self.rows(x, count(x))
        )

    def gauss_newton_product(self, parameters: Parameters, x: Any, y: Any, v: Array) -> Array:
        """Return `v · (1/n Σ Jᵢᵀ (∇²_f ℓᵢ) Jᵢ)`, `(k, d)`."""
        point, split = self.layout.pick(parameters), _Split()

        def outputs(p: Parameters) -> tuple[list[Array], list[Any]]:
            everything = {**parameters, **p}
            return split(jax.vmap(lambda a: self.losses.outputs(everything, a))(x))

        f, push, rest = jax.linearize(outputs, point, has_aux=True)

        def mean(floats: list[Array]) -> Array:
            return jax.vmap(self.losses.of_outputs)(split.joined(floats, rest), y).mean()

        _, bend = jax.linearize(jax.grad(mean), f)
        pull = jax.linear_transpose(push, point)
        return self.pushed(lambda u: pull(bend(push(u)))[0], x, v)

    def hessian_quadratics(self, parameters: Parameters, x: Any, y: Any, v: Array) -> Array:
        """Return `vᵢ · ∇²ℓᵢ · vᵢᵀ`, `(n,)`."""
        point = self.layout.pick(parameters)

        def one(args: tuple[Any, Any, Array]) -> Array:
            a, b, row = args
            u = self.layout.split(row)
            loss = _of_block(parameters, lambda p: self.losses.point(p, a, b))
            return jax.jvp(lambda p: jax.jvp(loss, (p,), (u,))[1], (point,), (u,))[1]

        return each(one, (x, y, v), self.rows(x, 1)).astype(v.dtype)

    def gauss_newton_quadratics(self, parameters: Parameters, x: Any, y: Any, v: Array) -> Array:
        """Return `vᵢ · Jᵢᵀ (∇²_f ℓᵢ) Jᵢ · vᵢᵀ`, `(n,)`."""
        point = self.layout.pick(parameters)

        def one(args: tuple[Any, Any, Array]) -> Array:
            (a, b, row), split = args, _Split()
            outputs = _of_block(parameters, lambda p: split(self.losses.outputs(p, a)))
            u = self.layout.split(row)
            f, moved, rest = jax.jvp(outputs, (point,), (u,), has_aux=True)

            def loss(floats: list[Array]) -> Array:
                return self.losses.of_outputs(split.joined(floats, rest), b)

            bent = jax.jvp(jax.grad(loss), (f,), (moved,))[1]
            return sum((jnp.vdot(s, t) for s, t in zip(moved, bent, strict=True)), jnp.zeros(()))

        return each(one, (x, y, v), self.rows(x, 1)).astype(v.dtype)

    def mixed(self, parameters: Parameters, x: Any, y: Any, v: Array) -> Any:
        """Return `∇ₓ⟨v, ∇θℓᵢ⟩`, `(k, n, *x.shape[1:])`, None for leaves that are not floats."""
        point = self.layout.pick(parameters)
        floats, rest, structure = split_floats(x)

        def of_row(row: Array) -> list[Array]:
            u = self.layout.split(row)

            def of_point(floats: list[Array], rest: list[Any], b: Any) -> list[Array]:
                def slope(floats: list[Array]) -> Array:
                    a = with_floats(floats, rest, structure)
                    loss = _of_block(parameters, lambda p: self.losses.point(p, a, b))
                    return jax.jvp(loss, (point,), (u,))[1]

                return [t.astype(v.dtype) for t in jax.grad(slope)(floats)]

            return jax.vmap(of_point)(floats, rest, y)

        answers = iter(each(of_row, v, self.rows(x, count(x))))
        return jax.tree.unflatten(structure, [next(answers) if t is None else None for t in rest])


def each(fn: Callable[[Any], Any], rows: Any, chunk: int) -> Any:
    """Return `fn` of every row of a tree of arrays, stacked; `chunk` rows at a time."""
    return jax.vmap(fn)(rows) if chunk >= count(rows) else jax.lax.map(fn, rows, batch_size=chunk)


def count(tree: Any) -> int:
    """Return the length of the first axis."""
    return int(jax.tree.leaves(tree)[0].shape[0])


class _Split:
    """Takes the floating-point arrays out of what a model returns, and puts others in."""

    def __init__(self) -> None:
        self.structure: Any = None

    def __call__(self, tree: Any) -> tuple[list[Array], list[Any]]:
        floats, rest, self.structure = split_floats(tree)
        if not floats:
            raise ModelError(
                "second_order_mode='generalized_gauss_newton' needs a model whose outputs are a "
                "floating-point array, or a tree of them. Unpack what it returns in `apply`."
            )
        return floats, rest

    def joined(self, floats: Sequence[Array], rest: Sequence[Any]) -> Any:
        return with_floats(floats, rest, self.structure)


def _of_block(parameters: Parameters, fn: Callable[[Parameters], Any]) -> Callable[..., Any]:
    """Return `fn` as a function of the parameters of a block, the others as they are."""
    return lambda block: fn({**parameters, **block})
