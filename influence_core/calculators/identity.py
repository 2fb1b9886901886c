"""What a result on disk depends on, as JSON: a run goes on with its own only.

The fit is known by the gradient of its objective, to the last bit: it depends on every point, on
the loss and on the parameters, and it is saved and loaded with the model. A model that was fitted
again has the same one where its backend computes the same numbers again; `save` and `load` keep it
in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influence_core.arrays import namespace
from influence_core.calculators.model import FittedModel
from influence_core.errors import StorageError
from influence_core.fitted import FittedInfluence
from influence_core.problem import HasValues
from influence_core.storage import parameters
from influence_core.storage.hashes import hash_array

# what gradients depend on
OF_GRADIENTS = ("parameters", "blocks", "dtype")
# so many characters of a value are shown
_SHOWN = 40
# so many differences are listed
_LISTED = 4
_NOTHING = "nothing"


def of_model(model: FittedModel) -> dict[str, Any]:
    """Return what tells a fitted model at its λ from others."""
    return {
        **model.settings,
        "regularization": dict(model.regularization),
        "blocks": {block.name: list(block.names) for block in model.fitted.blocks},
        "parameters": _parameters(model),
        "dtype": str(model.problem.reference.dtype).rpartition(".")[2],
        "solver": namespace(model.exchange.solver).__name__,
        "fit": _fit(model.fitted),
    }


def differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return what two identities differ in, with both values; empty where they are one."""
    return _differences(saved, present, "")


def refusal(differing: list[str], where: str) -> StorageError:
    """Return the error for the result of another call; `where` is the present one."""
    more = len(differing) - _LISTED
    listed = "; ".join([*differing[:_LISTED], *([f"and {more} more"] if more > 0 else [])])
    return StorageError(
        f"`{where}` goes on with what the same call began; there is a result of another one, with "
        f"other {listed}. Make the same call, choose another path, or pass `overwrite=True` to "
        "replace it."
    )


def _differences(saved: Any, present: Any, path: str) -> list[str]:
    if not (isinstance(saved, Mapping) and isinstance(present, Mapping)):
        return [] if saved == present else [f"{path} ({_short(saved)}, now {_short(present)})"]
    names = dict.fromkeys([*saved, *present])
    found = [
        _differences(saved.get(name, _NOTHING), present.get(name, _NOTHING), f"{path}.{name}")
        for name in names
    ]
    return [difference.lstrip(".") for each in found for difference in each]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _parameters(model: FittedModel) -> str | None:
    if not isinstance(model.problem, HasValues):
        return None
    sha256: str = parameters.describe(model.problem)["sha256"]
    return sha256


def _fit(fitted: FittedInfluence) -> dict[str, Any] | None:
    if fitted.training is None:
        return None
    optimality = fitted.training.optimality
    return {"points": optimality.points, "gradient": hash_array(optimality.gradient)}
