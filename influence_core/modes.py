"""The enumerations of the documented API; their plain strings are accepted as well."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar

from influence_core.errors import OptionError, UnsupportedInfluenceModeException


class SecondOrderMode(StrEnum):
    """Which curvature matrix `C` is inverted. `N` points, `J` the Jacobian of the model's output.

    - `HESSIAN`: `1/N Σ ∇²ℓᵢ`;
    - `GAUSS_NEWTON`: `1/N Σ ∇ℓᵢ ∇ℓᵢᵀ`, the outer-product form (elsewhere: empirical Fisher);
    - `GENERALIZED_GAUSS_NEWTON`: `1/N Σ Jᵢᵀ (∇²_f ℓᵢ) Jᵢ`, positive semi-definite for convex losses
      (Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, 2002).
    """

    HESSIAN = "hessian"
    GAUSS_NEWTON = "gauss_newton"
    GENERALIZED_GAUSS_NEWTON = "generalized_gauss_newton"


class BlockMode(StrEnum):
    """How the parameters are cut into blocks; products across blocks count as zero.

    - `FULL`: one block, named ``""``;
    - `LAYER_WISE`: one block a module that itself owns parameters, named by the module;
    - `PARAMETER_WISE`: one block a parameter, named by it.
    """

    FULL = "full"
    LAYER_WISE = "layer_wise"
    PARAMETER_WISE = "parameter_wise"


class InfluenceMode(StrEnum):
    """What is asked of a training point: to be left out (`Up`) or changed (`Perturbation`)."""

    Up = "up"
    Perturbation = "perturbation"


class LabelKind(StrEnum):
    """At which labels the Fisher matrix of EK-FAC takes its gradients.

    - `EXPECTED`: the exact expectation over the model's own distribution;
    - `SAMPLED`: random draws from it;
    - `GIVEN`: the labels of the data, which makes it the empirical Fisher.

    Kunstner, Balles and Hennig, Limitations of the empirical Fisher approximation, NeurIPS 2019.
    """

    EXPECTED = "expected"
    SAMPLED = "sampled"
    GIVEN = "given"


class Sharing(StrEnum):
    """How a layer that is used at several positions of a point is factored.

    - `EXPAND`: every position is a point of its own: the input factor is the mean over the
      positions, the output factor the sum;
    - `REDUCE`: a point is the mean of its inputs and the sum of its output gradients.

    Eschenhagen, Immer, Turner, Schneider and Hennig, Kronecker-factored approximate curvature for
    modern neural network architectures, NeurIPS 2023.
    """

    EXPAND = "expand"
    REDUCE = "reduce"


class Unsupported(StrEnum):
    """What becomes of a parameter that belongs to no layer whose curvature can be factored.

    - `RAISE`: an exception that names it;
    - `DIAGONAL`: the diagonal of its Fisher matrix, where the backend shows its gradients;
    - `SKIP`: it is left out, as if it were a constant: its influence is zero.
    """

    RAISE = "raise"
    DIAGONAL = "diagonal"
    SKIP = "skip"


_Mode = TypeVar("_Mode", SecondOrderMode, BlockMode, InfluenceMode, LabelKind, Sharing, Unsupported)


def parse_mode(kind: type[_Mode], value: Any, argument: str) -> _Mode:
    """Return the member of `kind` that `value` is, by member or by plain string.

    Raises:
        UnsupportedInfluenceModeException: an unknown `InfluenceMode`.
        OptionError: an unknown value of another kind.
    """
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(f"{m.value!r}" for m in kind)
        errors: dict[type[StrEnum], type[ValueError]] = {
            InfluenceMode: UnsupportedInfluenceModeException
        }
        raise errors.get(kind, OptionError)(
            f"`{argument}` must be a member of {kind.__name__}, or one of {known}; got {value!r}."
        ) from None
