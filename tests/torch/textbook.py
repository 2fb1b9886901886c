"""K-FAC and EK-FAC of a stack of `Linear` and `Tanh`, by hand, in float64.

Points one by one, activations recomputed layer by layer, labels enumerated, factors multiplied out
with `np.kron`: a dense matrix of all parameters in the place of a curvature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dense import Dense, points
from torch import Tensor, nn


@dataclass(frozen=True)
class Seen:
    """What one layer sees of one point.

    Attributes:
        a: inputs `[a, 1]`, or what of them meets a parameter, `(s, i')`.
        g: gradients of the loss in the outputs, one for each outcome of the labels, `(s, o)`.
        p: the probabilities of the outcomes.
    """

    a: np.ndarray
    g: list[np.ndarray]
    p: list[float]


class Textbook(Dense):
    """Influence functions with the dense matrix of K-FAC (`mode="kfac"`) or EK-FAC (`"ekfac"`).

    Args:
        model: `nn.Sequential` of `Linear` and `Tanh`; inputs `(n, i)` or `(n, s, i)`, classes last.
        loss: as for `Dense`; the gradients of the scores are its.
        x: training inputs.
        y: training labels, `(n,)` or `(n, s)`.
        labels: ``"expected"`` or ``"given"``.
    """

    def __init__(
        self,
        model: nn.Sequential,
        loss: Callable[[Any, Any], Tensor],
        x: Tensor,
        y: Tensor,
        labels: str = "expected",
    ) -> None:
        super().__init__(model, loss, x, y)
        self.labels = labels
        self._kept: dict[tuple[str, bytes, bytes], Tensor] = {}

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """`∇ℓᵢ`, `(n, p)`; computed once for the same points."""
        return self._once("gradients", super().gradients, x, y)

    def mixed(self, x: Tensor, y: Tensor) -> Tensor:
        """`∂/∂x ∇θℓᵢ`, `(n, *x.shape[1:], p)`; computed once for the same points."""
        return self._once("mixed", super().mixed, x, y)

    def _once(
        self, what: str, compute: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        key = (what, x.numpy().tobytes(), y.numpy().tobytes())
        if key not in self._kept:
            self._kept[key] = compute(x, y)
        return self._kept[key]

    @property
    def layers(self) -> dict[str, list[str]]:
        """Layer name -> names of its parameters that want gradients."""
        named = {
            name: [f"{name}.{kind}" for kind in ("weight", "bias")]
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear)
        }
        kept = {name: [n for n in names if n in self.names] for name, names in named.items()}
        return {name: names for name, names in kept.items() if names}

    def kfac(self) -> Tensor:
        """`S ⊗ A` for every layer."""
        return self._block_diagonal(lambda seen: np.kron(*factors(seen)))

    def ekfac(self) -> Tensor:
        """`Qᵀ Λ Q` with `Q = Q_S ⊗ Q_A` and the mean squares of the rotated gradients as `Λ`."""

        def matrix(seen: list[Seen]) -> np.ndarray:
            q_s, q_a = (np.linalg.eigh(factor)[1].T for factor in factors(seen))
            q = np.kron(q_s, q_a)
            squares = [
                p * (q @ (g.T @ point.a).reshape(-1)) ** 2
                for point in seen
                for g, p in zip(point.g, point.p, strict=True)
            ]
            return q.T @ np.diag(sum(squares) / len(seen)) @ q

        return self._block_diagonal(matrix)

    def fisher(self) -> Tensor:
        """The exact Fisher matrix, across layers too: the mean of `∇ℓ ∇ℓᵀ` over the labels."""
        places = self.columns()[""]
        total = torch.zeros(len(places), len(places), dtype=torch.float64)
        for a, b in points(self.x, self.y):
            for y, p in self._outcomes(a, b):
                gradient = self._flat(self._loss(a, y))
                total += p * torch.outer(gradient, gradient)
        return total / len(self.y)

    def _block_diagonal(self, matrix: Callable[[list[Seen]], np.ndarray]) -> Tensor:
        size = len(self.columns()[""])
        total = torch.zeros(size, size, dtype=torch.float64)
        for layer, place in self.columns(self.layers).items():
            block = torch.as_tensor(matrix(self._seen(layer)))
            # `[W, b]` row by row -> `W` row by row, then `b`
            order = self._order(layer)
            total[place[:, None], place] = block[order][:, order]
        return total

    def _order(self, layer: str) -> Tensor:
        module = self.model.get_submodule(layer)
        names = self.layers[layer]
        o, i = module.weight.shape
        columns = [i] * (f"{layer}.weight" in names) + [1] * (f"{layer}.bias" in names)
        grid = torch.arange(o * sum(columns)).reshape(o, -1)
        return torch.cat([part.reshape(-1) for part in grid.split(columns, dim=1)])

    def _seen(self, layer: str) -> list[Seen]:
        names = self.layers[layer]
        answer = []
        for a, b in points(self.x, self.y):
            inputs, outputs, logits = self._forward(a, layer)
            with_one = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
            kept = [f"{layer}.weight" in names] * inputs.shape[1] + [f"{layer}.bias" in names]
            g, p = [], []
            for y, probability in self._outcomes(a, b):
                value = F.cross_entropy(logits, y.reshape(-1))
                (gradient,) = torch.autograd.grad(value, outputs, retain_graph=True)
                g.append(gradient.numpy())
                p.append(probability)
            answer.append(Seen(with_one.detach().numpy()[:, kept], g, p))
        return answer

    def _forward(self, x: Tensor, watched: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return input and output of a layer and the logits, each with positions as rows."""
        h, seen = x.reshape(-1, x.shape[-1]), None
        for name, module in self.model.named_children():
            if isinstance(module, nn.Tanh):
                h = torch.tanh(h)
                continue
            z = h @ module.weight.T + (0.0 if module.bias is None else module.bias)
            if name == watched:
                seen = (h, z)
            h = z
        assert seen is not None
        return *seen, h

    def _outcomes(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Yield all labels that the point may have, with their probabilities."""
        if self.labels == "given":
            yield y, 1.0
            return
        with torch.no_grad():
            probabilities = self.model(x).softmax(dim=-1).reshape(y.numel(), -1)
        for labels in product(range(probabilities.shape[1]), repeat=y.numel()):
            p = torch.stack([row[c] for row, c in zip(probabilities, labels, strict=True)]).prod()
            yield torch.tensor(labels).reshape(y.shape), p.item()


def factors(seen: list[Seen]) -> tuple[np.ndarray, np.ndarray]:
    """`S` and `A`."""
    a = sum(point.a.T @ point.a / len(point.a) for point in seen) / len(seen)
    s = sum(p * g.T @ g for point in seen for g, p in zip(point.g, point.p, strict=True)) / len(
        seen
    )
    return s, a
