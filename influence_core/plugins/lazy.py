"""Packages that load their names when they are used: the registry may look at them for nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from influence_core.errors import BackendImportError


def lazy_names(
    package: str, homes: Mapping[str, str], libraries: Collection[str], title: str, extra: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a backend package that imports nothing of its own.

    Args:
        package: its name.
        homes: public name -> the module that it stands in.
        libraries: the top-level packages that the backend stands on.
        title: what the library is called.
        extra: the extra of influence-core that installs it.

    Either function raises what a module does; a name whose library is missing raises
    `BackendImportError`, which says what to install.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in libraries:
                raise
            raise BackendImportError(
                f"`{package}.{name}` needs {title}, which is not installed. "
                f'Install it with `pip install "influence-core[{extra}]"`.'
            ) from error

    return load, lambda: sorted(homes)
