"""Small models and data for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax_reference import Reference

import influence_jax

N = 23


@dataclass(frozen=True)
class Case:
    """A model with its loss and `n` points."""

    apply: Callable[..., Any]
    params: Any
    loss: Callable[..., Any]
    x: Any
    y: Any

    @property
    def model(self) -> tuple[Any, Any, Any]:
        """The first arguments of a class."""
        return self.apply, self.params, self.loss

    def loader(self, batch_size: int = N) -> list[tuple[Any, Any]]:
        """All points in batches; every size of a batch has to be compiled."""
        return [self.part(start, start + batch_size) for start in range(0, N, batch_size)]

    def part(self, *where: int | None) -> tuple[Any, Any]:
        """The points of a slice."""
        return jax.tree.map(lambda t: t[slice(*where)], (self.x, self.y))

    def problem(self, **options: Any) -> influence_jax.JaxProblem:
        """The backend's problem."""
        model = influence_jax.Model(self.apply, self.params)
        return influence_jax.JaxProblem(model, self.loss, **options)

    def reference(self) -> Reference:
        """The dense reference."""
        return Reference(*self.model, self.x, self.y)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


def labels(*shape: int, number: int = 3, seed: int = 1) -> np.ndarray:
    """Labels."""
    return np.random.default_rng(seed).integers(0, number, shape)


def dense(inputs: int, outputs: int, seed: int) -> dict[str, np.ndarray]:
    """The parameters of one layer, a kernel `(i, o)` as in Flax."""
    kernel = normal(inputs, outputs, seed=seed) / inputs**0.5
    return {"bias": normal(outputs, seed=seed + 1), "kernel": kernel}


def affine(layer: Any, x: jax.Array) -> jax.Array:
    """`x W + b`."""
    return x @ layer["kernel"] + layer["bias"]


def mlp(params: Any, x: jax.Array) -> jax.Array:
    """Two layers with tanh between."""
    return affine(params["second"], jnp.tanh(affine(params["first"], x)))


def mlp_case() -> Case:
    """A classifier of 31 parameters; its Hessian is indefinite, its Gauss-Newton forms are not."""
    params = jax.tree.map(jnp.asarray, {"first": dense(3, 4, 1), "second": dense(4, 3, 3)})
    x = jnp.asarray(normal(N, 3))
    return Case(mlp, params, influence_jax.cross_entropy, x, jnp.asarray(labels(N)))


def linear(params: Any, x: jax.Array) -> jax.Array:
    """One layer."""
    return affine(params, x)


def convex_case() -> Case:
    """Multinomial regression, 15 parameters: its Hessian is positive semi-definite."""
    x = jnp.asarray(normal(N, 4))
    return Case(linear, dense(4, 3, 1), influence_jax.cross_entropy, x, jnp.asarray(labels(N)))


def squared(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The losses of the points, `(n,)`."""
    return ((outputs - y) ** 2).sum(axis=-1) / 2
