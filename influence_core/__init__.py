"""Influence functions for machine learning, written once on the array API standard.

*Which training points made my model say this, and what would change without them?*
`Influence` answers for any model that an installed backend can differentiate, by one of the methods
`Direct`, `Cg`, `Lissa`, `Arnoldi`, `NystroemSketch`, `InverseHarmonicMean` and `Ekfac`. Importing
this package imports no machine-learning framework.
"""

from influence_core.calls import InfluenceFunctionModel
from influence_core.curvature import SolveReport
from influence_core.errors import (
    BackendConflictError,
    BackendError,
    BackendImportError,
    BackendNotFoundError,
    BlockError,
    CapabilityError,
    ConditioningWarning,
    ConvergenceWarning,
    DataError,
    DataTypeError,
    DeviceError,
    ExchangeError,
    InfluenceError,
    InfluenceWarning,
    LossError,
    MissingExtraError,
    ModelError,
    NonFiniteError,
    NotFittedException,
    NotImplementedLayerRepresentationException,
    OptimalityWarning,
    OptionError,
    PluginError,
    PluginWarning,
    RegularizationError,
    SingularCurvatureError,
    StorageError,
    UnsupportedInfluenceModeException,
)
from influence_core.influence import Influence
from influence_core.methods import (
    Arnoldi,
    Cg,
    Direct,
    Ekfac,
    EkfacPreconditioner,
    InverseHarmonicMean,
    JacobiPreconditioner,
    Lissa,
    Method,
    NystroemPreconditioner,
    NystroemSketch,
    Preconditioner,
)
from influence_core.modes import BlockMode, InfluenceMode, LabelKind, SecondOrderMode
from influence_core.problem import Batch, Problem
from influence_core.storage import load

__version__ = "0.1.0"

__all__ = [
    "Arnoldi",
    "BackendConflictError",
    "BackendError",
    "BackendImportError",
    "BackendNotFoundError",
    "Batch",
    "BlockError",
    "BlockMode",
    "CapabilityError",
    "Cg",
    "ConditioningWarning",
    "ConvergenceWarning",
    "DataError",
    "DataTypeError",
    "DeviceError",
    "Direct",
    "Ekfac",
    "EkfacPreconditioner",
    "ExchangeError",
    "Influence",
    "InfluenceError",
    "InfluenceFunctionModel",
    "InfluenceMode",
    "InfluenceWarning",
    "InverseHarmonicMean",
    "JacobiPreconditioner",
    "LabelKind",
    "Lissa",
    "LossError",
    "Method",
    "MissingExtraError",
    "ModelError",
    "NonFiniteError",
    "NotFittedException",
    "NotImplementedLayerRepresentationException",
    "NystroemPreconditioner",
    "NystroemSketch",
    "OptimalityWarning",
    "OptionError",
    "PluginError",
    "PluginWarning",
    "Preconditioner",
    "Problem",
    "RegularizationError",
    "SecondOrderMode",
    "SingularCurvatureError",
    "SolveReport",
    "StorageError",
    "UnsupportedInfluenceModeException",
    "__version__",
    "load",
]
