"""One directory of fitted state: a readable JSON beside a file of tensors, written as a whole.

It is written under another name beside its place and renamed once everything has reached the disk:
after a crash there is all of it or none. The JSON holds the hash of the tensors and of itself, so
that a file which was cut short or edited is found out before anything of it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.errors import StorageError
from influence_core.extras import require
from influence_core.storage.hashes import hash_json

Host = npt.NDArray[Any]

RECORD, TENSORS = "influence.json", "state.safetensors"
FORMAT, VERSION = "influence-core fitted state", 1

_REMEDY = "Restore it from a copy, or fit and save again."


def write(
    path: str | os.PathLike[str], record: Mapping[str, Any], arrays: Mapping[str, Host]
) -> None:
    """Write state to the directory `path`; what was saved there before is replaced.

    Args:
        path: in an existing directory; a directory that is there must be one of these, or empty.
        record: what JSON can say.
        arrays: name to contiguous array.

    Raises:
        MissingExtraError: safetensors is not installed.
        StorageError: there is something else at `path`, or writing fails.
    """
    library = require("safetensors.numpy", "save", "storage")
    target = Path(os.path.realpath(path))
    _check_replaceable(target)
    folder = _beside(target, "partial")
    try:
        with _failing(f"save({str(path)!r})"):
            folder.mkdir()
            library.save_file(dict(arrays), folder / TENSORS)
            _write_record(folder, record)
            for written in (folder / TENSORS, folder / RECORD, folder):
                _flush(written)
            _move(folder, target)
            _flush(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the record of the directory `path`, after both files were checked.

    Raises:
        StorageError: a file is missing, cut short, edited or of another version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise StorageError(f"`load`: {folder} is no directory.{_leftover(folder)}")
    record = _read_record(folder / RECORD)
    tensors = folder / TENSORS
    _check_tensors(tensors, record["tensors"])
    return record


@contextmanager
def tensors(path: str | os.PathLike[str]) -> Iterator[Callable[[str], Host]]:
    """Open the tensors of the directory `path`; each is read when it is asked for.

    Raises:
        MissingExtraError: safetensors is not installed.
        StorageError: the file cannot be read.
    """
    library = require("safetensors", "load", "storage")
    file = Path(path) / TENSORS
    try:
        opened = library.safe_open(file, framework="np")
    except (OSError, library.SafetensorError) as error:
        raise StorageError(f"`load`: {file} cannot be read: {error}. {_REMEDY}") from error
    with opened as found:
        yield lambda name: np.asarray(found.get_tensor(name))


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    size, digest = _measured(folder / TENSORS)
    whole = {
        "format": FORMAT,
        "version": VERSION,
        **record,
        "tensors": {"file": TENSORS, "bytes": size, "sha256": digest},
    }
    text = json.dumps(
        {**whole, "sha256": hash_json(whole)}, indent=2, ensure_ascii=False, allow_nan=False
    )
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(f"`load`: {file} is missing. {_REMEDY}") from error
    except OSError as error:
        raise StorageError(f"`load`: {file} cannot be read: {error}.") from error
    except ValueError as error:  # no JSON, or no text
        raise StorageError(
            f"`load`: {file} is cut short or was edited: {error}. {_REMEDY}"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise StorageError(f"`load`: {file} holds no fitted state. Pass what `save` wrote.")
    if record.get("version") != VERSION:
        raise StorageError(
            f"`load`: {file} has the format version {record.get('version')!r}; this version of "
            f"influence-core reads {VERSION}. Install the one that wrote it "
            f"({record.get('written_by')}), or fit and save again."
        )
    if record.pop("sha256", None) != hash_json(record):
        raise StorageError(
            f"`load`: {file} was edited: its content has another hash than it says. {_REMEDY}"
        )
    return record


def _check_tensors(file: Path, saved: Mapping[str, Any]) -> None:
    try:
        size, digest = _measured(file)
    except FileNotFoundError as error:
        raise StorageError(f"`load`: {file} is missing. {_REMEDY}") from error
    except OSError as error:
        raise StorageError(f"`load`: {file} cannot be read: {error}.") from error
    if size != saved["bytes"]:
        raise StorageError(
            f"`load`: {file} has {size} bytes where {saved['bytes']} were written. {_REMEDY}"
        )
    if digest != saved["sha256"]:
        raise StorageError(
            f"`load`: {file} was changed: its sha256 is {digest[:12]}…, where "
            f"{saved['sha256'][:12]}… was written. {_REMEDY}"
        )


def _measured(file: Path) -> tuple[int, str]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return opened.tell(), digest


def _check_replaceable(target: Path) -> None:
    if not target.parent.is_dir():
        raise StorageError(
            f"`save` writes into an existing directory; there is no {target.parent}. Make it first."
        )
    if not target.exists():
        return
    if target.is_dir():
        names = {each.name for each in target.iterdir()}
        if not names or (names == {RECORD, TENSORS} and _is_ours(target / RECORD)):
            return
    raise StorageError(
        f"`save` replaces fitted state and nothing else; {target} is something else. Choose "
        "another path, or remove it."
    )


def _is_ours(file: Path) -> bool:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def _move(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    before = _beside(target, "replaced")
    target.rename(before)
    try:
        folder.rename(target)
    except BaseException:
        before.rename(target)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _beside(target: Path, what: str) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.{what}"


def _leftover(folder: Path) -> str:
    """Say where the state is that a `save` was about to replace when it was killed."""
    prefix, found = f".{folder.name}.", []
    if folder.parent.is_dir():
        found = [
            str(each)
            for each in sorted(folder.parent.iterdir())
            if each.name.startswith(prefix) and each.name.endswith(".replaced")
        ]
    if not found:
        return " Pass the path that `save` was given."
    return f" A `save` was interrupted there: rename {found[-1]}, which it was replacing."


def _flush(path: Path) -> None:
    """Wait until a file or directory has reached the disk."""
    if path.is_dir() and os.name != "posix":
        return  # directories cannot be opened there
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _failing(call: str) -> Iterator[None]:
    library = require("safetensors", "save", "storage")
    try:
        yield
    except (OSError, library.SafetensorError) as error:
        message = f"`{call}` cannot write: {error}. Make room, or choose another path."
        raise StorageError(message) from error
