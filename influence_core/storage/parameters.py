"""The identity of a model: the content of its parameters, and of what else it computes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from influence_core.arrays import namespace
from influence_core.errors import CapabilityError, ModelError
from influence_core.problem import Array, HasValues, Problem
from influence_core.storage.hashes import hash_array, hash_json

# so many names are written out in a message
_SHOWN = 5


@runtime_checkable
class HasConstants(Protocol):
    """Hands out what the outputs depend on beside the parameters: frozen ones, buffers."""

    def constants(self) -> Mapping[str, Array]:
        """Return name to array; the names are none of those in `parameters`."""
        ...


def describe(problem: Problem) -> dict[str, Any]:
    """Return shape, dtype and hash of every parameter and constant, and the hash of them all.

    Raises:
        CapabilityError: the backend does not hand out its parameters.
    """
    if not isinstance(problem, HasValues):
        raise CapabilityError(
            f"saved state belongs to the parameters it was fitted with, which `save` and `load` "
            f"compare; {type(problem).__name__} does not hand them out. Its backend needs `values`."
        )
    each = {
        name: _described(namespace(values).reshape(values, shape))
        for name, shape in problem.parameters.items()
        for values in [problem.values([name])]
    }
    if isinstance(problem, HasConstants):
        each |= {name: _described(array) for name, array in problem.constants().items()}
    return {"sha256": hash_json(list(each.items())), "each": each}


def check(saved: Mapping[str, Any], problem: Problem, where: str) -> None:
    """Raise unless the model has the parameters that the state was fitted with.

    Args:
        saved: what `describe` returned of the fitted model.
        problem: of the model to load into.
        where: the call, for the message.

    Raises:
        ModelError: it has others; the message says which, and in what they differ.
        CapabilityError: the backend does not hand out its parameters.
    """
    present = describe(problem)
    if present["sha256"] == saved["sha256"]:
        return
    raise ModelError(
        f"`{where}`: the state was fitted with other parameters: "
        f"{'; '.join(_differences(saved['each'], present['each']))}. Load the parameters that were "
        "fitted into the model first, or fit again."
    )


def _described(array: Array) -> dict[str, Any]:
    dtype = str(array.dtype).rpartition(".")[2]
    return {"shape": list(array.shape), "dtype": dtype, "sha256": hash_array(array)}


def _differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    missing = [name for name in saved if name not in present]
    added = [name for name in present if name not in saved]
    found = [f"the model has no {_listed(missing)}"] if missing else []
    found += [f"it has {_listed(added)} beside them"] if added else []
    common = [name for name in saved if name in present]
    for what in ("shape", "dtype"):
        found += [
            f"{name!r} has the {what} {present[name][what]}, where {saved[name][what]} was saved"
            for name in common
            if saved[name][what] != present[name][what]
        ][:_SHOWN]
    other = [name for name in common if _values_differ(saved[name], present[name])]
    found += [f"the values of {_listed(other)} differ"] if other else []
    return found or ["the same ones stand in another order"]


def _values_differ(saved: Mapping[str, Any], present: Mapping[str, Any]) -> bool:
    alike = all(saved[what] == present[what] for what in ("shape", "dtype"))
    return bool(alike and saved["sha256"] != present["sha256"])


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    more = len(names) - _SHOWN
    return shown if more <= 0 else f"{shown} and {more} more"
