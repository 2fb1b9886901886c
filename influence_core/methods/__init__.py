"""The methods, one a file."""

from influence_core.methods.arnoldi import Arnoldi
from influence_core.methods.base import Method
from influence_core.methods.cg import Cg
from influence_core.methods.direct import Direct
from influence_core.methods.ekfac import Ekfac
from influence_core.methods.ekfac_preconditioner import EkfacPreconditioner
from influence_core.methods.harmonic_mean import InverseHarmonicMean
from influence_core.methods.lissa import Lissa
from influence_core.methods.nystroem import NystroemSketch
from influence_core.methods.preconditioners import (
    JacobiPreconditioner,
    NystroemPreconditioner,
    Preconditioner,
    PreparedPreconditioner,
)

__all__ = [
    "Arnoldi",
    "Cg",
    "Direct",
    "Ekfac",
    "EkfacPreconditioner",
    "InverseHarmonicMean",
    "JacobiPreconditioner",
    "Lissa",
    "Method",
    "NystroemPreconditioner",
    "NystroemSketch",
    "Preconditioner",
    "PreparedPreconditioner",
]
