"""Stores of zarr: where they lie, what a crash leaves in them, and how they reach the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from influence_core.errors import StorageError
from influence_core.extras import require

# what zarr writes to before it renames it
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")


def load_zarr(call: str) -> ModuleType:
    """Import and return zarr.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("zarr", call, "storage")


def resolve(store: Any, call: str) -> Any:
    """Return the store that a path means; a URL is left to zarr."""
    zarr = load_zarr(call)
    local = isinstance(store, os.PathLike) or (isinstance(store, str) and "://" not in store)
    return zarr.storage.LocalStore(Path(os.path.abspath(store))) if local else store


def location(store: Any) -> Path | None:
    """Return the directory of a store of zarr, or of a path in one; None where it has none."""
    root = getattr(getattr(store, "store", store), "root", None)
    return root / getattr(store, "path", "") if isinstance(root, Path) else None


def open_array(store: Any, mode: str, call: str) -> Any:
    """Return the array at a store, or None where there is none."""
    try:
        return load_zarr(call).open_array(store, mode=mode)
    except FileNotFoundError:
        return None


def files_of(directory: Path) -> list[Path]:
    """Return the files under a directory, without what a killed process was writing."""
    return [each for each in _files(directory) if not _PARTIAL.search(each.name)]


def remove_partial(directory: Path | None) -> None:
    """Remove what a killed process was writing: a name that no chunk has."""
    for file in _files(directory) if directory else ():
        if _PARTIAL.search(file.name):
            file.unlink()


def flush(*paths: Path) -> None:
    """Wait until files and directories have reached the disk."""
    if os.name != "posix":  # elsewhere, directories cannot be opened
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def opening(call: str, store: Any) -> Iterator[None]:
    """Turn what a store raises while it is opened into a `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        raise StorageError(
            f"`{call}` cannot open {store}: {error}. Choose another path, or let it be written to."
        ) from error


def _files(directory: Path) -> list[Path]:
    return [each for each in directory.rglob("*") if each.is_file()]
