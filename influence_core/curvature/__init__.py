"""What is inverted, and the inverses that methods share."""

from influence_core.arrays import Exchange
from influence_core.blocks import Block
from influence_core.curvature.base import Curvature, Product
from influence_core.curvature.fisher import kronecker_inverses
from influence_core.curvature.fisher_labels import FisherLabels
from influence_core.curvature.gauss_newton import GaussNewton
from influence_core.curvature.generalized_gauss_newton import GeneralizedGaussNewton
from influence_core.curvature.hessian import Hessian
from influence_core.curvature.inverse import (
    BlockReports,
    Inverse,
    Solution,
    SolveReport,
    closed_form_report,
    join_reports,
)
from influence_core.curvature.kronecker import KroneckerInverse, KroneckerLayer
from influence_core.curvature.layer_parts import KroneckerSettings
from influence_core.curvature.layer_summary import (
    FitMemory,
    LayerRow,
    LayerSummary,
    summarize_layers,
)
from influence_core.curvature.nystroem import Sketch, nystroem_sketch, sketch_curvature
from influence_core.curvature.spectral import (
    LowRankInverse,
    SpectralInverse,
    check_condition,
    spectral_product,
)
from influence_core.modes import SecondOrderMode
from influence_core.objective import Objective

__all__ = [
    "BlockReports",
    "Curvature",
    "FisherLabels",
    "FitMemory",
    "GaussNewton",
    "GeneralizedGaussNewton",
    "Hessian",
    "Inverse",
    "KroneckerInverse",
    "KroneckerLayer",
    "KroneckerSettings",
    "LayerRow",
    "LayerSummary",
    "LowRankInverse",
    "Product",
    "Sketch",
    "Solution",
    "SolveReport",
    "SpectralInverse",
    "check_condition",
    "closed_form_report",
    "join_reports",
    "kronecker_inverses",
    "make_curvature",
    "nystroem_sketch",
    "sketch_curvature",
    "spectral_product",
    "summarize_layers",
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
