"""Influence functions of JAX functions: the documented classes, thin facades over the core.

Names are loaded when they are used, so that the plug-in registry can look at this package without
importing JAX.
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
    from influence_jax.arnoldi import ArnoldiInfluence
    from influence_jax.cg import CgInfluence
    from influence_jax.direct import DirectInfluence
    from influence_jax.ekfac import EkfacInfluence
    from influence_jax.inverse_harmonic_mean import InverseHarmonicMeanInfluence
    from influence_jax.likelihoods import cross_entropy
    from influence_jax.lissa import LissaInfluence
    from influence_jax.model import Model
    from influence_jax.nystroem import NystroemSketchInfluence
    from influence_jax.problem import JaxProblem

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
    "JaxProblem",
    "LabelKind",
    "LissaInfluence",
    "Model",
    "NotFittedException",
    "NotImplementedLayerRepresentationException",
    "NystroemPreconditioner",
    "NystroemSketchInfluence",
    "SecondOrderMode",
    "UnsupportedInfluenceModeException",
    "cross_entropy",
]

_HOMES = {
    "ArnoldiInfluence": "influence_jax.arnoldi",
    "BlockMode": "influence_core.modes",
    "CgInfluence": "influence_jax.cg",
    "DirectInfluence": "influence_jax.direct",
    "EkfacInfluence": "influence_jax.ekfac",
    "EkfacPreconditioner": "influence_core.methods",
    "InfluenceMode": "influence_core.modes",
    "InverseHarmonicMeanInfluence": "influence_jax.inverse_harmonic_mean",
    "JacobiPreconditioner": "influence_core.methods",
    "LabelKind": "influence_core.modes",
    "JaxProblem": "influence_jax.problem",
    "LissaInfluence": "influence_jax.lissa",
    "Model": "influence_jax.model",
    "NotFittedException": "influence_core.errors",
    "NotImplementedLayerRepresentationException": "influence_core.errors",
    "NystroemPreconditioner": "influence_core.methods",
    "NystroemSketchInfluence": "influence_jax.nystroem",
    "SecondOrderMode": "influence_core.modes",
    "UnsupportedInfluenceModeException": "influence_core.errors",
    "cross_entropy": "influence_jax.likelihoods",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, ("jax", "jaxlib"), "JAX", "jax")
