"""Rows of numbers to named tensors and back: columns follow the names, row-major inside each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which columns of a `(k, d)` matrix belong to which parameter.

    Attributes:
        shapes: name to shape of the parameters of a block, in the order of the columns.
    """

    shapes: dict[str, torch.Size]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], names: Sequence[str]) -> Layout:
        """Return the layout of the parameters called `names`."""
        return cls({name: parameters[name].shape for name in names})

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """Cut `(…, d)` into tensors `(…, *shape)`."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = torch.split(rows, sizes, dim=-1)
        return {
            name: part.reshape((*rows.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Lay tensors `(…, *shape)` side by side as `(…, d)`."""
        return torch.cat(
            [
                tensors[name].reshape((*_leading(tensors[name], shape), -1))
                for name, shape in self.shapes.items()
            ],
            dim=-1,
        )


def _leading(tensor: Tensor, shape: torch.Size) -> torch.Size:
    return tensor.shape[: tensor.ndim - len(shape)]
