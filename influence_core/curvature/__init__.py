"""What is inverted, and the inverses that methods share."""

from influence_core.arrays import Exchange
from influence_core.blocks import Block
from influence_core.curvature.base import Curvature, Product
from influence_core.curvature.gauss_newton import GaussNewton
from influence_core.curvature.generalized_gauss_newton import GeneralizedGaussNewton
from influence_core.curvature.hessian import Hessian
from influence_core.curvature.inverse import (
    Inverse,
    Solution,
    SolveReport,
    closed_form_report,
    join_reports,
)
from influence_core.curvature.nystroem import NystroemSketch, nystroem_sketch
from influence_core.curvature.spectral import (
    LowRankInverse,
    SpectralInverse,
    check_condition,
    spectral_product,
)
from influence_core.modes import SecondOrderMode
from influence_core.objective import Objective

__all__ = [
    "Curvature",
    "GaussNewton",
    "GeneralizedGaussNewton",
    "Hessian",
    "Inverse",
    "LowRankInverse",
    "NystroemSketch",
    "Product",
    "Solution",
    "SolveReport",
    "SpectralInverse",
    "check_condition",
    "closed_form_report",
    "join_reports",
    "make_curvature",
    "nystroem_sketch",
    "spectral_product",
]

_KINDS: dict[SecondOrderMode, type[Curvature]] = {
    SecondOrderMode.HESSIAN: Hessian,
    SecondOrderMode.GAUSS_NEWTON: GaussNewton,
    SecondOrderMode.GENERALIZED_GAUSS_NEWTON: GeneralizedGaussNewton,
}


def make_curvature(
    mode: SecondOrderMode, objective: Objective, block: Block, exchange: Exchange
) -> Curvature:
    """Return the curvature of one block of the parameters."""
    return _KINDS[mode](objective, block, exchange)
