"""Slow dense references in float64: plain `torch.autograd`, points one by one, no vectorisation.

Nothing here comes from the package or from `torch.func`: a point is a batch of one, a matrix is
built row by row, a system is solved by LU. Columns are the parameters that want gradients in the
model's order, each row-major.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Regularization = float | Mapping[str, float]
Blocks = Mapping[str, Sequence[str]]


class Dense:
    """Influence functions by dense solves.

    Args:
        model: any module; a float64 copy is used.
        loss: `loss(output, y)` for a batch of one.
        x: training inputs, a tensor or a dict or tuple of tensors.
        y: training targets, likewise.
        forward: `fn(model, x)`; None is `model(x)`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        x: Any,
        y: Any,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        self.model = copy.deepcopy(model).double()
        self.loss = loss
        self.x, self.y = double(x), double(y)
        self.forward = forward or (lambda m, inputs: m(inputs))
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(named), list(named.values())
        self._curvatures: dict[str, Tensor] = {}

    def losses(self, x: Any, y: Any) -> Tensor:
        """`ℓᵢ`, `(n,)`."""
        return torch.stack([self._loss(a, b).detach() for a, b in points(double(x), double(y))])

    def gradients(self, x: Any, y: Any) -> Tensor:
        """`∇ℓᵢ`, `(n, p)`."""
        rows = [self._flat(self._loss(a, b)) for a, b in points(double(x), double(y))]
        return torch.stack(rows).detach()

    def curvature(self, mode: str = "hessian") -> Tensor:
        """`C`, `(p, p)`; `mode` is a plain string of `SecondOrderMode`."""
        if mode not in self._curvatures:
            self._curvatures[mode] = getattr(self, mode)()
        return self._curvatures[mode]

    def hessian(self) -> Tensor:
        """`1/N Σ ∇²ℓᵢ`."""
        total = torch.stack([self._loss(a, b) for a, b in points(self.x, self.y)]).mean()
        gradient = self._flat(total, create_graph=True)
        return torch.stack([self._flat(entry) for entry in gradient])

    def gauss_newton(self) -> Tensor:
        """`1/N Σ ∇ℓᵢ ∇ℓᵢᵀ`."""
        rows = self.gradients(self.x, self.y)
        return sum(torch.outer(row, row) for row in rows) / len(rows)

    def generalized_gauss_newton(self) -> Tensor:
        """`1/N Σ Jᵢᵀ (∇²_f ℓᵢ) Jᵢ`, over all floating-point outputs."""
        terms = []
        for a, b in points(self.x, self.y):
            output = self._output(a)
            f = torch.cat([leaf.reshape(-1) for leaf in float_leaves(output)])
            jacobian = torch.stack([self._flat(entry) for entry in f])
            bend = torch.autograd.functional.hessian(
                lambda flat, output=output, b=b: self.loss(refill(output, flat), b).sum(),
                f.detach(),
            )
            terms.append(jacobian.T @ bend @ jacobian)
        return sum(terms) / len(terms)

    def mixed(self, x: Any, y: Any) -> Any:
        """`∂/∂x ∇θℓᵢ`, `(n, *x.shape[1:], p)`; a list of those over the float leaves of a tree."""
        rows = []
        for a, b in points(double(x), double(y)):
            inputs = [leaf.requires_grad_() for leaf in float_leaves(a)]
            gradient = self._flat(self._loss(a, b), create_graph=True)
            columns = [
                torch.autograd.grad(entry, inputs, retain_graph=True, materialize_grads=True)
                if entry.requires_grad
                else [torch.zeros_like(leaf) for leaf in inputs]
                for entry in gradient
            ]
            rows.append(
                [torch.stack([c[0] for c in leaf], -1) for leaf in zip(*columns, strict=True)]
            )
        leaves = [torch.stack(leaf) for leaf in zip(*rows, strict=True)]
        return leaves[0] if isinstance(x, Tensor) else leaves

    def influence_factors(
        self,
        x: Any,
        y: Any,
        *,
        mode: str = "hessian",
        regularization: Regularization = 0.0,
        blocks: Blocks | None = None,
    ) -> Tensor:
        """Rows `(C + λI)⁻¹ ∇ℓ(xⱼ, yⱼ)`, `(n, p)`."""
        rows = self.gradients(x, y)
        parts = [
            self._solve(place, rows, mode, number(regularization, block))
            for block, place in self.columns(blocks).items()
        ]
        return torch.cat(parts, dim=1)

    def influences(self, *arguments: Any, **keywords: Any) -> Any:
        """`(m, n)`, or `(m, n, *x.shape[1:])` for ``influence="perturbation"``."""
        shares = list(self.influences_by_block(*arguments, **keywords).values())
        if isinstance(shares[0], Tensor):
            return sum(shares)
        return [sum(leaves) for leaves in zip(*shares, strict=True)]

    def influences_by_block(
        self,
        x_test: Any,
        y_test: Any,
        x: Any = None,
        y: Any = None,
        influence: str = "up",
        *,
        mode: str = "hessian",
        regularization: Regularization = 0.0,
        blocks: Blocks | None = None,
    ) -> dict[str, Any]:
        """Block name -> its share of `influences`."""
        x, y = (x_test, y_test) if x is None else (x, y)
        right = {"up": self.gradients, "perturbation": self.mixed}[influence](x, y)
        left = self.gradients(x_test, y_test)
        answer = {}
        for block, place in self.columns(blocks).items():
            factors = self._solve(place, left, mode, number(regularization, block))
            if isinstance(right, Tensor):
                answer[block] = _against(factors, right[..., place])
            else:
                answer[block] = [_against(factors, leaf[..., place]) for leaf in right]
        return answer

    def columns(self, blocks: Blocks | None = None) -> dict[str, Tensor]:
        """Block name -> its columns among the `p`, in the model's order."""
        blocks = {"": self.names} if blocks is None else blocks
        ends = torch.tensor([p.numel() for p in self.parameters]).cumsum(0).tolist()
        places = {
            name: torch.arange(end - p.numel(), end)
            for name, p, end in zip(self.names, self.parameters, ends, strict=True)
        }
        return {
            block: torch.cat([places[name] for name in self.names if name in members])
            for block, members in blocks.items()
        }

    def smallest_eigenvalue(self, mode: str = "hessian") -> float:
        """Of `C`."""
        return float(torch.linalg.eigvalsh(self.curvature(mode)).min())

    def _solve(self, place: Tensor, rows: Tensor, mode: str, regularization: float) -> Tensor:
        matrix = self.curvature(mode)[place][:, place]
        matrix = matrix + regularization * torch.eye(len(place), dtype=torch.float64)
        return torch.linalg.solve(matrix, rows[:, place].T).T

    def _output(self, x: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return self.forward(self.model, _map(torch.clone, x))

    def _loss(self, x: Any, y: Any) -> Tensor:
        return self.loss(self._output(x), y).reshape(())

    def _flat(self, value: Tensor, *, create_graph: bool = False) -> Tensor:
        if not value.requires_grad:
            return torch.cat([torch.zeros_like(p).reshape(-1) for p in self.parameters])
        parts = torch.autograd.grad(
            value,
            self.parameters,
            create_graph=create_graph,
            retain_graph=True,
            materialize_grads=True,
        )
        return torch.cat([part.reshape(-1) for part in parts])


def points(x: Any, y: Any) -> Iterator[tuple[Any, Any]]:
    """Every point as a batch of one."""
    count = len(_leaves(y)[0])
    for i in range(count):
        yield tuple(_map(lambda t, i=i: t[i : i + 1].clone(), tree) for tree in (x, y))


def double(tree: Any) -> Any:
    """Floating-point leaves in float64, detached, on the CPU."""
    return _map(
        lambda t: t.detach().cpu().double() if t.is_floating_point() else t.detach().cpu(), tree
    )


def float_leaves(tree: Any) -> list[Tensor]:
    """The leaves that can be differentiated."""
    return [leaf for leaf in _leaves(tree) if leaf.is_floating_point()]


def refill(tree: Any, flat: Tensor) -> Any:
    """The tree with its floating-point leaves replaced by the numbers of `flat`."""
    parts = iter(flat.split([leaf.numel() for leaf in float_leaves(tree)]))
    return _map(lambda t: next(parts).reshape(t.shape) if t.is_floating_point() else t, tree)


def number(regularization: Regularization, block: str) -> float:
    """λ of a block."""
    if isinstance(regularization, Mapping):
        return float(regularization.get(block, 0.0))
    return float(regularization)


def _against(factors: Tensor, right: Tensor) -> Tensor:
    return torch.movedim(right @ factors.T, -1, 0)


def _map(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _map(fn, child) for key, child in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(_map(fn, child) for child in tree)
    return fn(tree)


def _leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, Mapping):
        return [leaf for child in tree.values() for leaf in _leaves(child)]
    if isinstance(tree, tuple | list):
        return [leaf for child in tree for leaf in _leaves(child)]
    return [tree]
