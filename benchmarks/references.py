"""What the exact answers are, in float64: dense, slow, and by none of the ways that are measured.

Scores are `(m, n)` over the test and the training points of a workload. All but `hessian_scores`
share no code with a library under measurement; that one checks its residual with torch alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from workloads import Workload

CHUNK = 128


@dataclass(frozen=True)
class Exact:
    """The exact answers of one workload, computed when they are asked for.

    Args:
        work: the workload in float64.
    """

    work: Workload

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Names and values."""
        return {name: value.detach() for name, value in self.work.model.named_parameters()}

    def loss(self, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss."""
        return self.work.loss(functional_call(self.work.model, dict(parameters), (x,)), y)

    def gradients(self, x: Tensor, y: Tensor) -> Iterator[dict[str, Tensor]]:
        """Yield the gradients of the points by parameter, some points at a time."""
        single = grad(lambda p, x, y: self.loss(p, x[None], y[None]))
        for part in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            yield vmap(single, (None, 0, 0))(self.parameters, *part)

    def rows(self, points: tuple[Tensor, Tensor]) -> Tensor:
        """Return the gradients of the points, `(n, p)`."""
        return torch.cat([_flat(part) for part in self.gradients(*points)])

    @cached_property
    def hessian(self) -> Tensor:
        """The Hessian of the objective, `(p, p)`, for small models."""
        unit = torch.eye(self.work.parameters, dtype=torch.float64)
        return torch.cat([self.hessian_product(rows) for rows in unit.split(256)])

    def hessian_product(self, rows: Tensor) -> Tensor:
        """Return the products of the Hessian of the objective with `rows`, `(k, p)`."""
        gradient = grad(lambda p: self.loss(p, self.work.x_fit, self.work.y_fit))

        def product(tangent: dict[str, Tensor]) -> dict[str, Tensor]:
            return jvp(gradient, (self.parameters,), (tangent,))[1]

        return _flat(vmap(product)(self._by_name(rows)))

    def residuals(self, factors: np.ndarray, regularization: float) -> float:
        """Return the largest `‖b - (H + λI) x‖ / ‖b‖` over the test points that have a factor."""
        x = torch.as_tensor(factors, dtype=torch.float64)
        right = self.rows(tuple(side[: len(x)] for side in self.work.test))
        products = torch.cat([self.hessian_product(part) for part in x.split(8)])
        residual = right - products - regularization * x
        return float((residual.norm(dim=1) / right.norm(dim=1)).max())

    def direct(self, regularizations: Sequence[float]) -> np.ndarray:
        """Return the scores with the Hessian at every λ, `(r, m, n)`."""
        values, vectors = torch.linalg.eigh((self.hessian + self.hessian.T) / 2)
        test, train = (self.rows(side) @ vectors for side in (self.work.test, self.work.train))
        return np.stack([((test / (values + λ)) @ train.T).numpy() for λ in regularizations])

    def truncated(self, rank: int) -> np.ndarray:
        """Return the scores with the eigenpairs that are largest in absolute value alone."""
        values, vectors = torch.linalg.eigh((self.hessian + self.hessian.T) / 2)
        kept = values.abs().argsort(descending=True)[:rank]
        vectors, values = vectors[:, kept], values[kept] + self.work.regularization
        test, train = (self.rows(side) @ vectors for side in (self.work.test, self.work.train))
        return ((test / values) @ train.T).numpy()

    def harmonic_mean(self) -> np.ndarray:
        """Return the scores with `1/N Σᵢ (∇ℓᵢ∇ℓᵢᵀ + λI)⁻¹`."""
        return (self.harmonic_factors(self.work.test) @ self.rows(self.work.train).T).numpy()

    def harmonic_factors(self, points: tuple[Tensor, Tensor]) -> Tensor:
        """Return `1/N Σᵢ (∇ℓᵢ∇ℓᵢᵀ + λI)⁻¹` of the gradients of the points."""
        right, λ = self.rows(points), self.work.regularization
        total = torch.zeros_like(right)
        for part in self.gradients(self.work.x_fit, self.work.y_fit):
            g = _flat(part)
            total += (right @ g.T / (λ + (g**2).sum(dim=1))) @ g
        return (right - total / len(self.work.x_fit)) / λ

    def perturbation(self, m: int, n: int) -> np.ndarray:
        """Return `∇ₓ⟨v, ∇θℓ⟩` for the first points, `v` by the harmonic mean."""
        factors = self.harmonic_factors(tuple(side[:m] for side in self.work.test))
        x, y = (side[:n] for side in self.work.train)
        x = x.clone().requires_grad_()
        parameters = list(self.work.model.parameters())
        loss = self.work.loss(self.work.model(x), y) * len(x)
        along = torch.autograd.grad(loss, parameters, create_graph=True)
        along = torch.cat([part.flatten() for part in along])
        parts = [torch.autograd.grad(v @ along, x, retain_graph=True)[0] for v in factors]
        return torch.stack(parts).numpy()

    def generalized_gauss_newton(self) -> np.ndarray:
        """Return the scores of an MLP with `G = 1/N Σ Jᵢᵀ ∇²ℓᵢ Jᵢ`, whatever its size.

        With `∇²ℓᵢ = Sᵢ Sᵢᵀ` and the rows `U = (Sᵢᵀ Jᵢ) / √N`, `G = UᵀU` and
        `(G + λI)⁻¹ = (I - Uᵀ (UUᵀ + λI)⁻¹ U) / λ`. A row is `g ⊗ a` in every layer, so that all
        inner products come from those of `g` and of `a`.
        """
        work, λ = self.work, self.work.regularization
        test, train, fit = (
            self._layers(*points) for points in (work.test, work.train, (work.x_fit, None))
        )
        kernel = _inner(fit, fit) / len(work.x_fit)
        kernel.diagonal().add_(λ)
        across = [_inner(fit, side) / len(work.x_fit) ** 0.5 for side in (test, train)]
        solved = torch.cholesky_solve(across[0], torch.linalg.cholesky(kernel))
        return ((_inner(test, train) - solved.T @ across[1]) / λ).numpy()

    def _layers(self, x: Tensor, y: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Return `a`, `(n, i')`, and `g`, `(n·c, o)`, of the linear layers.

        `g` are the gradients of the loss, `c` = 1; without labels, those along the columns of `Sᵢ`.
        """
        seen: list[tuple[Tensor, Tensor]] = []

        def keep(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            seen.append((inputs[0].detach(), output))

        linear = [layer for layer in self.work.model if isinstance(layer, nn.Linear)]
        hooks = [layer.register_forward_hook(keep) for layer in linear]
        logits = self.work.model(x)
        for hook in hooks:
            hook.remove()
        p = logits.detach().softmax(dim=1)
        if y is None:
            root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
        else:
            root = (p - nn.functional.one_hot(y, p.shape[1]))[:, :, None]
        outputs = [output for _, output in seen]
        columns = [
            torch.autograd.grad(logits, outputs, root[:, :, c], retain_graph=True)
            for c in range(root.shape[2])
        ]
        ones = torch.ones(len(x), 1, dtype=x.dtype)
        return [
            (torch.cat([a, ones], dim=1), torch.stack(g, dim=1).flatten(0, 1))
            for (a, _), *g in zip(seen, *columns, strict=True)
        ]

    def ekfac(self, factors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the scores by exact contraction of per-sample gradients with given factors.

        `factors` has `layer/outputs`, `(o, o)`, and `layer/inputs`, `(i', i')`, with eigenvectors
        as rows, and the eigenvalues `layer/values`, `(o, i')`.
        """
        names = [name.removesuffix("/values") for name in factors if name.endswith("/values")]
        solved = {
            name: torch.cat(
                [
                    self._kronecker_solve(_matrices(part, name), factors, name).flatten(1)
                    for part in self.gradients(*self.work.test)
                ]
            )
            for name in names
        }
        columns = [
            sum(solved[name] @ _matrices(part, name).flatten(1).T for name in names)
            for part in self.gradients(*self.work.train)
        ]
        return torch.cat(columns, dim=1).numpy()

    def _kronecker_solve(
        self, matrices: Tensor, factors: Mapping[str, np.ndarray], name: str
    ) -> Tensor:
        o, i, values = (
            torch.as_tensor(factors[f"{name}/{kind}"], dtype=torch.float64)
            for kind in ("outputs", "inputs", "values")
        )
        damped = values + self.work.regularization
        return o.T @ ((o @ matrices @ i.T) / damped) @ i

    def _by_name(self, rows: Tensor) -> dict[str, Tensor]:
        sizes = [value.numel() for value in self.parameters.values()]
        parts = rows.split(sizes, dim=1)
        return {
            name: part.reshape(-1, *value.shape)
            for (name, value), part in zip(self.parameters.items(), parts, strict=True)
        }


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the relative error in the Frobenius norm; the largest where there are several."""
    if found.ndim > exact.ndim:
        found = found[0]
    if exact.ndim == 3:
        return max(error(a, b) for a, b in zip(found, exact, strict=True))
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _inner(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the inner products of `g ⊗ a` over all layers."""
    total: Tensor | None = None
    for (a, g), (b, h) in zip(left, right, strict=True):
        products = g @ h.T
        blocks = products.view(len(a), len(g) // len(a), len(b), len(h) // len(b))
        blocks *= (a @ b.T)[:, None, :, None]
        total = products if total is None else total.add_(products)
    assert total is not None
    return total


def _matrices(by_name: Mapping[str, Tensor], layer: str) -> Tensor:
    """Return the gradients of a layer with its bias as the last column, `(n, o, i')`."""
    weight, bias = by_name[f"{layer}.weight"], by_name[f"{layer}.bias"]
    return torch.cat([weight.flatten(2), bias[:, :, None]], dim=2)


def _flat(by_name: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten(1) for part in by_name.values()], dim=1)
