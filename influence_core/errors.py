"""Exceptions and warnings of the library.

Every exception subclasses `InfluenceError` and the built-in that a user would expect, so that
``except ValueError`` keeps working. Messages say four things: the call, the rule, what was got,
and the remedy.
"""

from __future__ import annotations

import sys
import warnings
from itertools import count


class InfluenceError(Exception):
    """Base of every exception that this library raises on purpose."""


class NotFittedException(InfluenceError, ValueError):
    """A call that needs `fit` was made before it."""


class UnsupportedInfluenceModeException(InfluenceError, ValueError):
    """`mode` is none of the values of `InfluenceMode`."""


class OptionError(InfluenceError, ValueError):
    """A keyword has a value outside the allowed ones."""


class DataError(InfluenceError, ValueError):
    """Data that cannot be used: empty, not finite, of different lengths."""


class DataTypeError(InfluenceError, TypeError):
    """Data of a kind that cannot be used: a one-shot generator, integers to be perturbed."""


class LossError(InfluenceError, ValueError):
    """The loss is neither the mean, the sum nor the vector of the losses of the points."""


class ModelError(InfluenceError, ValueError):
    """The model cannot be used in its present state."""


class DeviceError(InfluenceError, ValueError):
    """Arrays lie on devices that do not go together."""


class BlockError(InfluenceError, ValueError):
    """A block structure names no, unknown or repeated parameters, or a block is unknown."""


class RegularizationError(InfluenceError, ValueError):
    """A regularisation is negative, not finite, too small for the method, or names no block."""


class SingularCurvatureError(InfluenceError, ArithmeticError):
    """`C + λI` has no inverse in floating point."""


class NonFiniteError(InfluenceError, ArithmeticError):
    """A computation produced NaN or infinity."""


class CapabilityError(InfluenceError, NotImplementedError):
    """The backend lacks an optional ability that the call needs."""


class NotImplementedLayerRepresentationException(CapabilityError, ValueError):
    """A parameter belongs to no layer whose curvature can be factored."""


class ExchangeError(InfluenceError, TypeError):
    """An array cannot be handed from one array library to another without loss."""


class BackendError(InfluenceError):
    """Base of what can go wrong while a backend is looked for."""


class BackendNotFoundError(BackendError, LookupError):
    """No installed backend serves the model, or none has the name that was asked for."""


class BackendConflictError(BackendError, LookupError):
    """Two backends claim the same model type or carry the same name."""


class BackendImportError(BackendError, ImportError):
    """The library that a backend stands on is not installed."""


class MissingExtraError(InfluenceError, ImportError):
    """The library of an extra, such as ``storage``, is not installed."""


class StorageError(InfluenceError, OSError, ValueError):
    """Fitted state cannot be written, or cannot be read as it was written."""


class PluginError(BackendError, ValueError):
    """A plug-in does not keep to the plug-in interface."""


class InfluenceWarning(UserWarning):
    """Base of every warning of this library."""


class ConvergenceWarning(InfluenceWarning):
    """An iterative solve stopped before it reached its tolerance."""


class ConditioningWarning(InfluenceWarning):
    """`C + λI` is indefinite, or singular to working precision."""


class OptimalityWarning(InfluenceWarning):
    """The parameters are far from a minimum of the objective."""


class PluginWarning(InfluenceWarning):
    """A plug-in was skipped; the message says why."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's that called the library, however deep inside it happened."""
    for level in count(2):
        try:
            module = sys._getframe(level - 1).f_globals.get("__name__", "")
        except ValueError:  # no frame is the user's
            break
        if not module.startswith("influence_"):  # the core, or a backend as they are named
            break
    warnings.warn(message, category, stacklevel=level)
