"""Rows of numbers to named arrays and back: columns follow the names, row-major inside each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class Layout:
    """Which numbers of a row `(d,)` belong to which parameter.

    Attributes:
        shapes: name to shape of the parameters of a block, in the order of the columns.
    """

    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, parameters: Mapping[str, Array], names: Sequence[str]) -> Layout:
        """Return the layout of the parameters called `names`."""
        return cls({name: parameters[name].shape for name in names})

    @property
    def size(self) -> int:
        """The number `d` of columns."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def pick(self, parameters: Mapping[str, Array]) -> dict[str, Array]:
        """Return the parameters of the block."""
        return {name: parameters[name] for name in self.shapes}

    def split(self, row: Array) -> dict[str, Array]:
        """Cut `(d,)` into arrays."""
        arrays, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            arrays[name], start = row[start:stop].reshape(shape), stop
        return arrays

    def join(self, arrays: Mapping[str, Array]) -> Array:
        """Lay arrays end to end, `(d,)`."""
        return jnp.concatenate([arrays[name].reshape(-1) for name in self.shapes])
