"""Fields of fitted state that are not kept on disk, because they follow from what is there at load.

A dataclass declares one beside the field itself::

    pairs: Sequence[Any] | None = field(
        metadata=remade(lambda at: at.curvature.objective.indexed())
    )
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_REMADE = "influence_core.remade"


def remade(make: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the metadata of a field that `make(at)` makes anew.

    `at` has the attributes of `influence_core.storage.state.Surroundings`: `problem`, `blocks`,
    `exchange`, and `curvature` where the field belongs to the inverse of a block.
    """
    return {_REMADE: make}


def maker_of(metadata: Mapping[str, Any]) -> Callable[[Any], Any] | None:
    """Return what makes a field of this metadata anew, or None where it is kept."""
    return metadata.get(_REMADE)
