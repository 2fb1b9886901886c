"""Direct solution: `C = V Λ Vᵀ` once, then `(C + λI)⁻¹ = V (Λ + λ)⁻¹ Vᵀ` for any λ.

Koh and Liang, Understanding black-box predictions via influence functions, ICML 2017, with the
curvature materialised. Time `O(d³)` and memory `O(d²)` for each block of `d` parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from influence_core.arrays import eigh, to_host
from influence_core.curvature import Curvature, SpectralInverse
from influence_core.methods.base import Method


@dataclass(frozen=True)
class Direct(Method):
    """Materialise and factor each block. Exact for any symmetric curvature, indefinite included."""

    def prepare(self, curvature: Curvature) -> SpectralInverse:
        """Compute all eigenpairs of `C`; one pass over the data."""
        matrix = curvature.matrix()
        values, vectors = eigh(matrix)
        host = to_host(values).astype(np.float64)
        return SpectralInverse(matrix, host, vectors, curvature.block.name)
