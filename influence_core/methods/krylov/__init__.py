"""Krylov iterations on rows, shared by the methods: no data, no blocks, only products."""

from influence_core.methods.krylov.block_conjugate_gradient import (
    MOST_CONJUGATED,
    block_conjugate_gradient,
)
from influence_core.methods.krylov.conjugate_gradient import conjugate_gradient
from influence_core.methods.krylov.iteration import Iterate, LinearSystem, StopWatch
from influence_core.methods.krylov.lanczos import ROUNDING, Eigenpairs, Spectrum, lanczos

__all__ = [
    "MOST_CONJUGATED",
    "ROUNDING",
    "Eigenpairs",
    "Iterate",
    "LinearSystem",
    "Spectrum",
    "StopWatch",
    "block_conjugate_gradient",
    "conjugate_gradient",
    "lanczos",
]
