"""Nyström sketch: `C ≈ U Λ Uᵀ` from products with a few random vectors.

Frangella, Tropp and Udell, Randomized Nyström preconditioning, SIAM J. Matrix Anal. 44 (2023);
Hataya and Yamada, Nyström method for accurate and scalable implicit differentiation, AISTATS 2023.
Time: two passes with `rank` products each; memory `O(rank · d)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from influence_core.curvature import Curvature, LowRankInverse, sketch_curvature
from influence_core.methods.base import Method, check_positive_integer


@dataclass(frozen=True)
class NystroemSketch(Method):
    """`(C_nys + λI)⁻¹ = U (Λ + λ)⁻¹ Uᵀ + (I - U Uᵀ) / λ`, from one sketch for any `λ > 0`.

    `C_nys = (CΩ)(ΩᵀCΩ)⁺(CΩ)ᵀ = U Λ Uᵀ` with a Gaussian test matrix `Ω`, `(d, rank)`. The recipe is
    for positive semi-definite `C`. On an indefinite one, the directions that betray it (negative
    eigenvalues of the core, and those beside them that would blow up) are clipped to zero, with a
    warning; no eigenvalue exceeds those of `C`.

    Attributes:
        rank: number of random directions; cut to `d`, where the sketch of a positive semi-definite
            `C` is exact.
        seed: of the test matrix.

    Raises:
        OptionError: `rank` is less than one, or `seed` negative.
    """

    rank: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_positive_integer("rank", self.rank)
        check_positive_integer("seed", self.seed, "or zero", least=0)

    @property
    def needs_damping(self) -> bool:
        """True: what is orthogonal to the sketch is divided by λ."""
        return True

    def prepare(self, curvature: Curvature) -> LowRankInverse:
        """Sketch `C`.

        Warns:
            ConditioningWarning: `C` is indefinite.
        """
        consequence = "The sketch approximates the positive part of the curvature;"
        sketch = sketch_curvature(
            curvature, self.rank, self.seed, f"NystroemSketch(rank={self.rank})", consequence
        )
        return LowRankInverse(
            sketch.values,
            sketch.vectors,
            complement=True,
            block=curvature.block.name,
            indefinite=sketch.clipped.size > 0,
        )
