"""One writer at a time: a lock that the system takes back when its process dies.

Beside the directory of a local store stands `<directory>.lock` while it is written to, locked
(flock) and with the number of the process inside. A file that a killed process left is not locked
and is in nobody's way. Other stores know no such lock: there, to start one writer only is up to the
user.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from influence_core.errors import StorageError

_FAR = 2**20


@contextmanager
def writing(directory: Path | None) -> Iterator[None]:
    """Be the only one who writes to a directory; None locks nothing.

    Raises:
        StorageError: another process, or another thread, is writing to it.
    """
    if directory is None:
        yield
        return
    file = directory.with_name(f"{directory.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(file, directory)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        os.close(descriptor)


def _locked(file: Path, directory: Path) -> int:
    """Return a descriptor of the lock file, locked by this process alone."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
            if _is_at(descriptor, file):  # else its owner unlinked it before the lock was had
                return descriptor
        except OSError as error:
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise StorageError(
                f"`to_zarr` writes to a store alone; {owner} is writing to {directory}. Wait for "
                "it, or choose another path."
            ) from error
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _FAR, os.SEEK_SET)  # what is locked there cannot be read by others
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
