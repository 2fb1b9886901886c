"""What a likelihood offers: gradients in the outputs, at labels of the model's distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence_core.modes import LabelKind
from influence_core.problem import Labels

# up to so many slices the exact expectation is what is meant where nobody says
FEW = 32


@dataclass(frozen=True)
class Slices:
    """Gradients in the outputs of a model, or in something that is made of them, one a slice.

    Attributes:
        rows: what tells the slices apart, tensors `(c, …)`.
        cotangent: a row ↦ the gradients in the target.
        target: the outputs ↦ what the gradients belong to.
    """

    rows: dict[str, Tensor]
    cotangent: Callable[[Mapping[str, Tensor]], Tensor]
    target: Callable[[Any], Tensor] = lambda outputs: outputs

    @property
    def count(self) -> int:
        """Number of slices `c`."""
        return next(iter(self.rows.values())).shape[0]


def one_slice(total: Callable[[Any], Tensor], outputs: Any) -> Slices:
    """Return the gradient of a number, `outputs ↦ ()`."""
    one = torch.ones_like(total(outputs)).unsqueeze(0)
    return Slices({"one": one}, lambda row: row["one"], total)


class Likelihood(ABC):
    """The distribution of the labels that a loss belongs to: `p(y | f) ∝ exp(-ℓ(f, y))`."""

    @abstractmethod
    def slices(self, outputs: Tensor, y: Tensor, labels: Labels) -> Slices:
        """Return the gradients at expected or sampled labels.

        Where the kind is None: at expected ones if these are few, at sampled ones otherwise.
        """


@dataclass(frozen=True)
class Independent(Likelihood):
    """Every output of a point has a distribution of its own, and no other has a part in it.

    The gradient of a point has the mean zero over the labels, so that what is quadratic in it has
    as its mean the sum over the outputs of what it is for the root mean square of one gradient.

    Attributes:
        averaged: whether the loss of a point is the mean over its outputs, or their sum.
    """

    averaged: bool = True

    @abstractmethod
    def deviation(self, outputs: Tensor, share: float) -> Tensor:
        """Return the root mean square of the gradients in the outputs, in their shape.

        Args:
            outputs: of the model, `(n, …)`.
            share: of one output in the loss of its point.
        """

    @abstractmethod
    def gradients(self, outputs: Tensor, share: float, uniforms: Tensor) -> Tensor:
        """Return the gradients at random labels, `(draws, n, …)`, from uniforms in that shape."""

    def slices(self, outputs: Tensor, y: Tensor, labels: Labels) -> Slices:
        """Return a slice for every output of a point, or for every draw."""
        count = outputs[0].numel()
        share = 1 / count if self.averaged else 1.0
        default = LabelKind.EXPECTED if count <= FEW else LabelKind.SAMPLED
        if kind_or(labels, default) is LabelKind.EXPECTED:
            return self._expected(outputs, share)
        uniforms = torch.as_tensor(labels.uniforms(count)).to(outputs)
        uniforms = uniforms.reshape(-1, *outputs.shape)
        draws = uniforms.shape[0]
        rows = self.gradients(outputs, share, uniforms) / draws**0.5
        return Slices({"gradients": rows}, lambda row: row["gradients"])

    def _expected(self, outputs: Tensor, share: float) -> Slices:
        deviation = self.deviation(outputs, share)
        places = torch.arange(outputs[0].numel(), device=outputs.device).reshape(outputs.shape[1:])
        rows = {"place": places.flatten()}
        return Slices(rows, lambda row: deviation * (places == row["place"]))


def kind_or(labels: Labels, default: LabelKind) -> LabelKind:
    """Return the kind of labels that was asked for, or the default."""
    return default if labels.kind is None else labels.kind
