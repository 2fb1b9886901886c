"""Stores that fail."""

from __future__ import annotations

import errno
from typing import Any

from zarr.storage import LocalStore


class FullStore(LocalStore):
    """A directory on a disk that is full after a number of chunks."""

    room = 0

    async def set(self, key: str, value: Any) -> None:
        if not key.endswith("zarr.json"):
            if self.room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= 1
        await super().set(key, value)


class RefusingStore(LocalStore):
    """A directory that nothing can be written to."""

    async def set(self, key: str, value: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")


class CountingStore(LocalStore):
    """A directory that counts the chunks that are written."""

    written = 0

    async def set(self, key: str, value: Any) -> None:
        self.written += not key.endswith("zarr.json")
        await super().set(key, value)
