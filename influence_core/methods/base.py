"""A method: how `(C + λI)⁻¹` of a block is prepared from its curvature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from influence_core.curvature import Curvature, Inverse
from influence_core.errors import OptionError


class Method(ABC):
    """Settings of one way to invert; an instance is immutable and serves any number of fits."""

    @property
    def needs_damping(self) -> bool:
        """Whether λ must be positive for every block."""
        return False

    @abstractmethod
    def prepare(self, curvature: Curvature) -> Inverse:
        """Do everything that does not depend on a right-hand side or on λ, for one block."""

    def prepare_blocks(self, curvatures: Sequence[Curvature]) -> list[Inverse]:
        """Return the inverse of every block; called by `fit`.

        A method that learns about all blocks in one pass over the data overrides this.
        """
        return [self.prepare(curvature) for curvature in curvatures]


def check_positive_integer(
    argument: str, value: object, otherwise: str = "", *, least: int = 1
) -> None:
    """Raise `OptionError` unless `value` is an integer of one (or `least`) or more."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        rule = " ".join(filter(None, ("an integer of one or more", otherwise)))
        raise OptionError(f"`{argument}` must be {rule}; got {value!r}.")
