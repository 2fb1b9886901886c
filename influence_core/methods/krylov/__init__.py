"""Krylov iterations on rows, shared by the methods: no data, no blocks, only products."""

from influence_core.methods.krylov.block_conjugate_gradient import block_conjugate_gradient
from influence_core.methods.krylov.conjugate_gradient import conjugate_gradient
from influence_core.methods.krylov.iteration import Iterate, LinearSystem, StopWatch

__all__ = [
    "Iterate",
    "LinearSystem",
    "StopWatch",
    "block_conjugate_gradient",
    "conjugate_gradient",
]
