"""Fewer numbers a gradient: random projections that keep scalar products in expectation.

With `P`, `(r, p)`, of independent signs over `√r`, `E⟨P f, P g⟩ = ⟨f, g⟩`, and the standard
deviation of `⟨P f, P g⟩` is at most `sqrt((‖f‖² ‖g‖² + ⟨f, g⟩²) / r)` (Achlioptas,
Database-friendly random projections: Johnson–Lindenstrauss with binary coins, JCSS 66, 2003).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from influence_core.arrays import concatenate_trees, namespace, rademacher_rows
from influence_core.methods.base import check_positive_integer
from influence_core.problem import Array

# every row of P has a seed of its own: P is the same however many rows are drawn at a time
_SHIFT = 64


@dataclass(frozen=True)
class Projection:
    """A random projection `P`, `(r, p)`, of signs over `√r`, drawn on the host.

    The score of two vectors `f` and `g` has the standard deviation
    `sqrt((‖f‖² ‖g‖² + ⟨f, g⟩²) / r)`, or less: an error of `1/√r` for vectors in one direction, and
    large against the scores of vectors that are nearly orthogonal.

    Attributes:
        size: the number `r` of numbers that is kept of a row.
        seed: of the signs.

    Raises:
        OptionError: `size` is no positive integer, or `seed` is none from zero on.
    """

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_positive_integer("Projection(size)", self.size)
        check_positive_integer("Projection(seed)", self.seed, "or zero", least=0)

    def of(self, rows: Array) -> Array:
        """Return `rows · Pᵀ`, `(k, r)`, for `rows` of shape `(k, p)`.

        As many rows of `P` are held at a time as there are rows to project.
        """
        xp = namespace(rows)
        parts = [
            rows @ xp.matrix_transpose(self._rows(start, rows))
            for start in range(0, self.size, rows.shape[0])
        ]
        return concatenate_trees(parts, axis=1) * (1.0 / math.sqrt(self.size))

    def _rows(self, start: int, like: Array) -> Array:
        count, size = like.shape
        each = range(start, min(start + count, self.size))
        return concatenate_trees(
            [rademacher_rows((row << _SHIFT) + self.seed, 1, size, like) for row in each], axis=0
        )
