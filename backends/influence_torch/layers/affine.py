"""`nn.Linear`, and the `Conv1D` of Hugging Face's transformers, which holds its weight transposed.

A part whose weight is computed (by a parametrization) keeps its bias only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from influence_core.problem import Layer
from influence_torch.layers.parts import Named, Part, Seen


@dataclass(frozen=True)
class Affine(Part):
    """`z = W a + b` along the last axis.

    Attributes:
        layer: the only one.
    """

    layer: Layer

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layer bears the name of the module."""
        return {self.name: self.layer}

    def seen(self, site: str, a: Tensor, g: Tensor) -> Seen:
        """Return both as they are."""
        return {self.name: (a, g)}


def linear(name: str, module: nn.Linear, named: Named) -> Affine:
    """Return the part that an `nn.Linear` is."""
    weight, bias = named(module, "weight"), named(module, "bias")
    return Affine(name, Layer(weight, bias, module.in_features, module.out_features))


def transposed(name: str, module: nn.Module, named: Named) -> Affine:
    """Return the part that a `transformers.pytorch_utils.Conv1D` is: weight `(i, o)`."""
    inputs, outputs = module.weight.shape
    weight, bias = named(module, "weight"), named(module, "bias")
    return Affine(name, Layer(weight, bias, inputs, outputs, transposed=True))
