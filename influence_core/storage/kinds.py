"""Classes by name: which ones a file may speak of, and how they are found again.

A file names a class as `module:name`. Nothing is imported because a file says so: the class must be
of this package, of the package of the model's backend, or of a module that the user has imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection
from functools import reduce
from typing import Any

from influence_core.errors import StorageError

_CORE = __name__.partition(".")[0]


def name_of(kind: type) -> str:
    """Return the name by which a class is found again.

    Raises:
        StorageError: there is none, as for a class inside a function.
    """
    name = f"{kind.__module__}:{kind.__qualname__}"
    if _attribute(sys.modules.get(kind.__module__), kind.__qualname__) is not kind:
        raise StorageError(
            f"`save` stores classes by their names; {name} leads to no such class. Define it at "
            "the top level of a module."
        )
    return name


def find(name: str, packages: Collection[str] = ()) -> type:
    """Return the class of this name.

    Args:
        name: as `name_of` returned it.
        packages: whose modules may be imported for it, beside those of the core.

    Raises:
        StorageError: there is none, or its module would have to be imported.
    """
    module, _, qualified = name.partition(":")
    if module.partition(".")[0] in {_CORE, *packages}:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise StorageError(f"`load`: {_missing(name)}") from error
    found = _attribute(sys.modules.get(module), qualified)
    if not isinstance(found, type):
        raise StorageError(f"`load`: {_missing(name)}")
    return found


def _attribute(module: Any, qualified: str) -> Any:
    return reduce(lambda owner, part: getattr(owner, part, None), qualified.split("."), module)


def _missing(name: str) -> str:
    module, _, qualified = name.partition(":")
    return (
        f"the state needs the class {qualified!r} of the module {module!r}, which is not there. "
        "Import the module before, in the version that the state was saved with."
    )
