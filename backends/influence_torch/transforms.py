"""Two ways to differentiate, with one interface: vectorised by torch.func, or looped by autograd.

Every product of the backend is a chain of `gradient` and `pullback`, reverse mode only: it covers
the most operators, and measured on MLPs it is as fast as forward mode over reverse or faster.
`Looped` serves the models that `vmap` cannot go through.

A function that is differentiated takes a dict of tensors, the `point`, and nothing else that wants
gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Point = dict[str, Tensor]
Pull = Callable[[Any], Point]


class Transforms(Protocol):
    """Derivatives of functions of a `Point`."""

    def gradient(self, fn: Callable[[Point], Tensor]) -> Callable[[Point], Point]:
        """Return `point ↦ ∇fn(point)` for a scalar function; can be differentiated again."""
        ...

    def pullback(self, fn: Callable[[Point], Any], point: Point) -> Pull:
        """Return `cotangent ↦ cotangentᵀ ∂fn/∂point`; the forward work is done once."""
        ...

    def each(self, fn: Callable[[Any], Any], rows: Any, chunk: int) -> Any:
        """Return `fn` of every row of a tree of tensors, stacked; `chunk` rows at a time."""
        ...


class Vectorized:
    """torch.func: all rows of a product in one vmapped call."""

    def gradient(self, fn: Callable[[Point], Tensor]) -> Callable[[Point], Point]:
        """Return the gradient function."""
        return torch.func.grad(fn)

    def pullback(self, fn: Callable[[Point], Any], point: Point) -> Pull:
        """Return the vector-Jacobian product of `fn` at `point`."""
        _, pull = torch.func.vjp(fn, point)
        return lambda cotangent: pull(cotangent)[0]

    def each(self, fn: Callable[[Any], Any], rows: Any, chunk: int) -> Any:
        """Map over the first axis; a random operation in `fn` is an error."""
        return torch.func.vmap(fn, chunk_size=chunk)(rows)


class Looped:
    """Plain autograd: one row after the other, for any operator that has a second derivative."""

    def gradient(self, fn: Callable[[Point], Tensor]) -> Callable[[Point], Point]:
        """Return the gradient function, which keeps its graph."""

        def gradient(point: Point) -> Point:
            leaves = {name: _differentiable(tensor) for name, tensor in point.items()}
            with torch.enable_grad():
                value = fn(leaves)
            return _grad([value], leaves, None, create_graph=True)

        return gradient

    def pullback(self, fn: Callable[[Point], Any], point: Point) -> Pull:
        """Return the vector-Jacobian product of `fn` at `point`."""
        leaves = {name: _differentiable(tensor) for name, tensor in point.items()}
        with torch.enable_grad():
            values = pytree.tree_leaves(fn(leaves))

        def pull(cotangent: Any) -> Point:
            return _grad(values, leaves, pytree.tree_leaves(cotangent), create_graph=True)

        return pull

    def each(self, fn: Callable[[Any], Any], rows: Any, chunk: int) -> Any:
        """Loop over the first axis."""
        count = pytree.tree_leaves(rows)[0].shape[0]
        answers = [
            pytree.tree_map(torch.detach, fn(pytree.tree_map(lambda t, i=i: t[i], rows)))
            for i in range(count)
        ]
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *answers)


def _differentiable(tensor: Tensor) -> Tensor:
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()


def _grad(
    values: list[Tensor], leaves: Point, cotangents: list[Tensor] | None, *, create_graph: bool
) -> Point:
    pairs = [
        (value, None if cotangents is None else cotangent)
        for value, cotangent in zip(values, cotangents or values, strict=True)
        if value.requires_grad
    ]
    if not pairs:  # a constant: autograd refuses it, its derivative is zero all the same
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    outputs, seeds = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(
        outputs,
        list(leaves.values()),
        seeds,
        retain_graph=True,
        create_graph=create_graph,
        materialize_grads=True,
    )
    return dict(zip(leaves, gradients, strict=True))
