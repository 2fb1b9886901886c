"""What an influence function model was made with, as JSON, to tell one run from another."""

from __future__ import annotations

from typing import Any

from influence_core.calls import InfluenceFunctionModel
from influence_core.errors import StorageError
from influence_core.influence import Influence
from influence_core.methods import Method
from influence_core.storage.hashes import hash_array
from influence_core.storage.state import Packer

# what is shown while a method runs
_SHOWN = ("progress", "warn_on_max_iteration")


def settings_of(influence: InfluenceFunctionModel) -> dict[str, Any]:
    """Return the class of a model, its method and the curvature that it inverts.

    Of a class of the user's own, the class and its `regularization` are all that is known.
    """
    if isinstance(influence, Influence):
        return {"method": _described(influence._method), "curvature": str(influence._mode)}
    kind = type(influence)
    return {
        "method": f"{kind.__module__}:{kind.__qualname__}",
        "own": {"regularization": repr(getattr(influence, "regularization", None))},
    }


def _described(method: Method) -> Any:
    packer = Packer()
    try:
        node = packer.pack(method, "method")
    except StorageError:  # a class without a place of its own
        return repr(method)
    shown = {name: value for name, value in node.items() if name not in _SHOWN}
    arrays = {name: hash_array(array) for name, array in packer.arrays.items()}
    return {**shown, "arrays": arrays} if arrays else shown
