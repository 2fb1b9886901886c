"""`nn.Embedding`: an affine layer on unit vectors, seen as their indices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from influence_core.problem import Layer
from influence_torch.layers.parts import Named, Part, Seen


@dataclass(frozen=True)
class Embedding(Part):
    """A table of vectors; the weight holds them as rows, `(i, o)`.

    Attributes:
        layer: the only one.
        padding: the index whose vector takes no gradient; None where there is none.
    """

    layer: Layer
    padding: int | None

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layer bears the name of the module."""
        return {self.name: self.layer}

    def seen(self, site: str, a: Tensor, g: Tensor) -> Seen:
        """Return indices `(n, …, 1)` and gradients."""
        if self.padding is not None:
            g = g * (a != self.padding).unsqueeze(-1)
        return {self.name: (a.unsqueeze(-1), g)}


def embedding(name: str, module: nn.Embedding, named: Named) -> Embedding | None:
    """Return the part that an `nn.Embedding` is; None where it writes into its weight."""
    if module.max_norm is not None or module.scale_grad_by_freq:
        return None
    rows, width = module.num_embeddings, module.embedding_dim
    layer = Layer(named(module, "weight"), None, rows, width, transposed=True, lookup=True)
    return Embedding(name, layer, module.padding_idx)
