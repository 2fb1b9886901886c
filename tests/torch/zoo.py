"""Small models, data for them, and how answers are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from dense import Dense
from torch import Tensor, nn

MODES = ("hessian", "gauss_newton", "generalized_gauss_newton")


@dataclass(frozen=True)
class Case:
    """A model in eval mode with its loss and `n` points.

    Attributes:
        model: the module.
        loss: of a batch.
        x: inputs, a tensor or a tree.
        y: targets.
        forward: `fn(model, x)`, or None.
    """

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    x: Any
    y: Any
    forward: Callable[[nn.Module, Any], Any] | None = None

    def loader(self, batch_size: int = 7) -> list[tuple[Any, Any]]:
        """All points in batches, the last one short where it must be."""
        return batches(self.x, self.y, batch_size)

    def part(self, *where: int | None) -> tuple[Any, Any]:
        """The points of a slice."""
        points = slice(*where)
        return tree_map(lambda t: t[points], self.x), tree_map(lambda t: t[points], self.y)

    def dense(self) -> Dense:
        """The reference."""
        return Dense(self.model, self.loss, self.x, self.y, self.forward)

    def keywords(self) -> dict[str, Any]:
        """Of a constructor, where `forward` is needed."""
        return {} if self.forward is None else {"forward": self.forward}


def batches(x: Any, y: Any, batch_size: int) -> list[tuple[Any, Any]]:
    """The points in batches."""
    count = len(next(iter(leaves(y))))
    parts = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    return [tuple(tree_map(lambda t, part=part: t[part], d) for d in (x, y)) for part in parts]


def tree_map(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply `fn` to the leaves of a dict or tuple."""
    if isinstance(tree, Mapping):
        return {key: tree_map(fn, child) for key, child in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(tree_map(fn, child) for child in tree)
    return fn(tree)


def leaves(tree: Any) -> list[Tensor]:
    """The leaves of a dict or tuple; None is no leaf."""
    found: list[Tensor] = []
    tree_map(lambda leaf: None if leaf is None else found.append(leaf), tree)
    return found


def rng(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def classes(count: int, number: int = 3, seed: int = 1) -> Tensor:
    """Labels."""
    return torch.randint(number, (count,), generator=rng(seed))


def seeded(make: Callable[[], nn.Module], seed: int = 0, scale: float = 1.0) -> nn.Module:
    """A float64 module in eval mode, with parameters drawn from `seed`; no global state moves."""
    model = make().double().eval()
    generator = rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            draws = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            fan = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.copy_(scale * draws / fan**0.5)
    return model


def mlp_case(n: int = 23, dtype: torch.dtype = torch.float64) -> Case:
    """A tanh network, 35 parameters: its Hessian is indefinite, its Gauss-Newton forms are not."""
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    x, y = normal(n, 3, dtype=dtype), classes(n)
    return Case(model.to(dtype), F.cross_entropy, x, y)


def convex_case(n: int = 23, dtype: torch.dtype = torch.float64) -> Case:
    """A bare `Linear` under cross-entropy, 15 parameters: its Hessian is positive semi-definite."""
    model = seeded(lambda: nn.Linear(4, 3), scale=0.5)
    return Case(model.to(dtype), F.cross_entropy, normal(n, 4, dtype=dtype), classes(n))


def close(got: Tensor, want: Tensor, tolerance: float = 1e-8) -> None:
    """Assert shape and numbers, relative to the largest."""
    assert isinstance(got, Tensor)
    assert not got.requires_grad
    assert got.shape == want.shape
    size = want.abs().max().item() if want.numel() else 0.0
    error = (got.detach().cpu().double() - want).abs().max().item() if want.numel() else 0.0
    assert error <= tolerance * size, f"relative error {error / size if size else error:.1e}"
