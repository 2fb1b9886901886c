"""Results on disk, in the zarr format: a chunk is there as a whole, or it is not there.

The array is filled with NaN, which no result holds, and every chunk ends with its checksum
(CRC32C). A chunk counts as finished when it can be read, its checksum holds, and no number in it is
NaN: this is looked up in the chunk itself, so that there is no second record that could say
something else. What was torn by a crash, or never reached the disk in a power failure, is computed
again.

A local store writes a chunk under another name and renames it. Nothing is flushed (fsync) chunk by
chunk; at the end of a run everything is, before the result is marked as complete.

The attributes hold what the result depends on (`identity`). A result that is being replaced is
marked first and cleared next: a crash in between leaves no chunk of the old one under the name of
the new.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import namespace, to_host
from influence_core.calculators.chunks import slices
from influence_core.calculators.identity import differences, refusal
from influence_core.calculators.lock import writing
from influence_core.calculators.stores import (
    files_of,
    flush,
    load_zarr,
    location,
    open_array,
    opening,
    remove_partial,
    resolve,
)
from influence_core.errors import StorageError
from influence_core.problem import Array

Host = npt.NDArray[Any]
Selection = tuple[slice, ...]

_ATTRIBUTE, _FORMAT = "influence_core", 1
_RECORD = "zarr.json"
_REPAIR = "Make the call that wrote it again: it computes what is missing."


@dataclass(frozen=True)
class Form:
    """What an array on disk is made of.

    Attributes:
        shape: of the array.
        chunks: the shape of a chunk.
        dtype: ``"float32"`` or ``"float64"``.
        identity: what the numbers depend on.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    identity: Mapping[str, Any]

    def described(self) -> dict[str, Any]:
        """Return the identity with shape, chunks and dtype, as JSON."""
        form = {"shape": list(self.shape), "chunks": list(self.chunks), "dtype": self.dtype}
        identity: dict[str, Any] = json.loads(json.dumps({**self.identity, "array": form}))
        return identity


@dataclass(frozen=True)
class Output:
    """An array on disk that is being filled.

    Attributes:
        array: the zarr array.
        call: for messages.
        fresh: whether it was made by this call: it has no chunk then.
    """

    array: Any
    call: str
    fresh: bool

    @property
    def grid(self) -> tuple[list[slice], list[slice]]:
        """The slices of the chunks along the first two axes."""
        rows, columns = (
            slices(size, chunk)
            for size, chunk in zip(self.array.shape[:2], self.array.chunks[:2], strict=True)
        )
        return rows, columns

    def missing(self) -> set[tuple[int, int]]:
        """Return the numbers of the chunks that are not finished; reads those that are."""
        rows, columns = self.grid
        return {
            (i, j)
            for i, of_rows in enumerate(rows)
            for j, of_columns in enumerate(columns)
            if self.fresh or not self._finished((of_rows, of_columns))
        }

    def numbers(self, chunks: Iterable[tuple[int, int]]) -> int:
        """Return how many numbers some chunks have."""
        rows, columns = self.grid
        each = math.prod(self.array.shape[2:])
        return sum(_length(rows[i]) * _length(columns[j]) * each for i, j in chunks)

    def write(self, selection: Selection, chunk: Host, left: int) -> None:
        """Write one chunk.

        Args:
            selection: where it stands.
            chunk: its numbers.
            left: how many chunks are not finished, this one included, for the message.

        Raises:
            StorageError: the store does not take it.
        """
        with self.failing(left):
            self.array[selection] = chunk

    def finish(self) -> None:
        """Flush everything to the disk, and mark the result as complete after that.

        Raises:
            StorageError: the store does not take it.
        """
        attributes = self.array.attrs.asdict()[_ATTRIBUTE]
        directory = location(self.array.store_path)
        with self.failing(0):
            if directory:
                flush(directory, *directory.rglob("*"))
            if not attributes["complete"]:
                self.array.attrs.put({_ATTRIBUTE: {**attributes, "complete": True}})
                if directory:
                    flush(directory, directory / _RECORD)

    @contextmanager
    def failing(self, left: int) -> Iterator[None]:
        """Turn what a store raises into an error that says what is finished."""
        rows, columns = self.grid
        try:
            yield
        except (OSError, ValueError) as error:
            count = len(rows) * len(columns)
            raise StorageError(
                f"`{self.call}` cannot write to {self.array.store_path}: {error}. "
                f"{count - left} of {count} chunks are finished and stay as they are. Make room, "
                "or let the store be written to, and make the same call again: it goes on there."
            ) from error

    def _finished(self, selection: Selection) -> bool:
        try:
            return bool(np.isfinite(self.array[selection]).all())
        except (OSError, ValueError):  # the checksum, above all
            return False


@contextmanager
def alone(store: Any, call: str) -> Iterator[Any]:
    """Yield the store that `store` means; nobody else writes to it meanwhile.

    Args:
        store: a path, or a store of zarr.
        call: for messages.

    Raises:
        MissingExtraError: zarr is not installed.
        StorageError: another process is writing to it.
    """
    place = resolve(store, call)
    with ExitStack() as stack:
        with opening(call, place):
            stack.enter_context(writing(location(place)))
        yield place


def begin(place: Any, form: Form, call: str, *, overwrite: bool) -> Output:
    """Return the array that the same call began, or make it.

    Args:
        place: what `alone` yielded.
        form: what is to stand there.
        call: for messages.
        overwrite: whether the result of another call is replaced.

    Raises:
        StorageError: there is something else, or the store cannot be written to.
    """
    with opening(call, place):
        array = _begun(place, form, call, overwrite=overwrite)
        fresh = array is None
        return Output(_create(place, form, call) if fresh else array, call, fresh)


def read(store: Any, call: str) -> tuple[Any, dict[str, Any]]:
    """Return the array of a complete result, and what its numbers depend on.

    Raises:
        MissingExtraError: zarr is not installed.
        StorageError: there is none, or it is not complete.
    """
    place = resolve(store, call)
    with opening(call, place):
        array = open_array(place, "r", call)
    if array is None:
        raise StorageError(f"`{call}`: there is no zarr array in {place}.")
    attributes = _attributes(array, place, call)
    if not attributes["complete"]:
        raise StorageError(
            f"`{call}` needs a complete result; the run that writes {place} was interrupted, or "
            "has not ended. Make its call again: it goes on where it was."
        )
    return array, attributes["identity"]


def read_chunk(array: Any, selection: Selection) -> Host:
    """Return numbers of a complete result.

    Raises:
        StorageError: they are damaged, or cannot be read.
    """
    try:
        numbers = np.asarray(array[selection])
    except (OSError, ValueError) as error:
        raise StorageError(f"{array.store_path} cannot be read: {error}. {_REPAIR}") from error
    if not np.isfinite(numbers).all():
        raise StorageError(f"{array.store_path} has lost a chunk. {_REPAIR}")
    return numbers


def on_host(array: Array) -> Host:
    """Return numbers as they are stored: NumPy has none that are shorter than float16."""
    xp = namespace(array)
    short = xp.finfo(array.dtype).bits < 32
    return to_host(xp.astype(array, xp.float32) if short else array)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _begun(store: Any, form: Form, call: str, *, overwrite: bool) -> Any:
    """Return the array that the same call began; None where it is to be made."""
    array = open_array(store, "r+", call)
    if array is None:
        _check_empty(store, call)
        return None
    saved = _attributes(array, store, call)["identity"]
    if saved is not None:
        differing = differences(saved, form.described())
        if not differing:
            remove_partial(location(store))
            return array
        if not overwrite:
            raise refusal(differing, call)
    _clear(array)
    return None


def _create(store: Any, form: Form, call: str) -> Any:
    zarr = load_zarr(call)
    attributes = {"format": _FORMAT, "complete": False, "identity": form.described()}
    return zarr.create_array(
        store,
        shape=form.shape,
        chunks=form.chunks,
        dtype=form.dtype,
        fill_value=math.nan,
        filters=None,
        compressors=[zarr.codecs.Crc32cCodec()],
        attributes={_ATTRIBUTE: attributes},
        overwrite=True,  # what is there was found to be cleared, or to hold no file
    )


def _attributes(array: Any, store: Any, call: str) -> dict[str, Any]:
    """Return what was noted of a result.

    Raises:
        StorageError: it is none of ours, or of a version that is not known.
    """
    found = array.attrs.asdict().get(_ATTRIBUTE)
    if not isinstance(found, dict):
        raise StorageError(_foreign(store, call))
    if found.get("format") != _FORMAT:
        raise StorageError(
            f"`{call}`: {store} was written in the format {found.get('format')!r}, this version of "
            f"influence-core knows {_FORMAT}. Install the one that wrote it, or choose another "
            "path."
        )
    return found


def _check_empty(store: Any, call: str) -> None:
    """Raise unless the directory of a store holds nothing that could be the user's."""
    directory = location(store)
    if directory is None or not directory.exists():
        return
    if not directory.is_dir() or files_of(directory):
        raise StorageError(_foreign(store, call))


def _foreign(store: Any, call: str) -> str:
    return (
        f"`{call}` writes to a new place, or goes on with what it began; {store} holds something "
        "else, which `overwrite=True` does not replace either. Choose another path, or remove it."
    )


def _clear(array: Any) -> None:
    """Mark a result as void, then remove its chunks: those that are filled with NaN are none."""
    array.attrs.put({_ATTRIBUTE: {"format": _FORMAT, "complete": False, "identity": None}})
    chunks = [slices(size, width) for size, width in zip(array.shape, array.chunks, strict=True)]
    for selection in product(*chunks):
        array[selection] = math.nan
