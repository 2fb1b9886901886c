"""Influence functions of torch modules: the documented classes, thin facades over the core.

Names are loaded when they are used, so that the plug-in registry can look at this package without
importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from influence_core.plugins import lazy_names

if TYPE_CHECKING:
    from influence_core.errors import (
        NotFittedException,
        NotImplementedLayerRepresentationException,
        UnsupportedInfluenceModeException,
    )
    from influence_core.methods import (
        EkfacPreconditioner,
        JacobiPreconditioner,
        NystroemPreconditioner,
    )
    from influence_core.modes import BlockMode, InfluenceMode, LabelKind, SecondOrderMode
    from influence_torch.arnoldi import ArnoldiInfluence
    from influence_torch.base import TorchInfluenceFunctionModel
    from influence_torch.cg import CgInfluence
    from influence_torch.direct import DirectInfluence
    from influence_torch.ekfac import EkfacInfluence
    from influence_torch.inverse_harmonic_mean import InverseHarmonicMeanInfluence
    from influence_torch.likelihoods import cross_entropy, next_token_cross_entropy
    from influence_torch.lissa import LissaInfluence
    from influence_torch.nystroem import NystroemSketchInfluence
    from influence_torch.problem import TorchProblem

__all__ = [
    "ArnoldiInfluence",
    "BlockMode",
    "CgInfluence",
    "DirectInfluence",
    "EkfacInfluence",
    "EkfacPreconditioner",
    "InfluenceMode",
    "InverseHarmonicMeanInfluence",
    "JacobiPreconditioner",
    "LabelKind",
    "LissaInfluence",
    "NotFittedException",
    "NotImplementedLayerRepresentationException",
    "NystroemPreconditioner",
    "NystroemSketchInfluence",
    "SecondOrderMode",
    "TorchInfluenceFunctionModel",
    "TorchProblem",
    "UnsupportedInfluenceModeException",
    "cross_entropy",
    "next_token_cross_entropy",
]

_HOMES = {
    "ArnoldiInfluence": "influence_torch.arnoldi",
    "BlockMode": "influence_core.modes",
    "CgInfluence": "influence_torch.cg",
    "DirectInfluence": "influence_torch.direct",
    "EkfacInfluence": "influence_torch.ekfac",
    "EkfacPreconditioner": "influence_core.methods",
    "InfluenceMode": "influence_core.modes",
    "InverseHarmonicMeanInfluence": "influence_torch.inverse_harmonic_mean",
    "JacobiPreconditioner": "influence_core.methods",
    "LabelKind": "influence_core.modes",
    "LissaInfluence": "influence_torch.lissa",
    "NotFittedException": "influence_core.errors",
    "NotImplementedLayerRepresentationException": "influence_core.errors",
    "NystroemPreconditioner": "influence_core.methods",
    "NystroemSketchInfluence": "influence_torch.nystroem",
    "SecondOrderMode": "influence_core.modes",
    "TorchInfluenceFunctionModel": "influence_torch.base",
    "TorchProblem": "influence_torch.problem",
    "UnsupportedInfluenceModeException": "influence_core.errors",
    "cross_entropy": "influence_torch.likelihoods",
    "next_token_cross_entropy": "influence_torch.likelihoods",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, ("torch",), "torch", "torch")
