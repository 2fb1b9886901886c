"""Libraries that only some calls need: imported when they are, with what to install if missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from influence_core.errors import MissingExtraError


def require(module: str, call: str, extra: str) -> ModuleType:
    """Import and return a library of an extra.

    Args:
        module: the dotted name of what to import.
        call: what needs it, for the message.
        extra: the extra of influence-core that installs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != library:
            raise
        raise MissingExtraError(
            f"`{call}` needs {library}, which is not installed. "
            f'Install it with `pip install "influence-core[{extra}]"`.',
            name=error.name,
        ) from error
