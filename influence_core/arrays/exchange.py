"""Handing arrays from the model's library to the solver's and back, through DLPack.

The exchange stands at the border of a whole product with the curvature, or of a whole set of
gradient rows: never inside a batch. It shares memory where the two libraries can; the core writes
into no array that it was given, so sharing is safe.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_core.arrays.namespace import device, move, namespace
from influence_core.errors import DeviceError, ExchangeError
from influence_core.problem import Array

_MODULES = {"jax": "jax.numpy"}
# what libraries raise for an array that they do not take
_REFUSALS = (TypeError, ValueError, RuntimeError, BufferError, AttributeError)


@dataclass(frozen=True)
class Exchange:
    """Two libraries, which may be one and the same, and the way between them.

    Attributes:
        model: an array in the library and on the device of the model.
        solver: the same array in the library of the solver.
    """

    model: Array
    solver: Array

    def to_solver(self, array: Array) -> Array:
        """Hand an array of the model's library to the solver's."""
        return _convert(array, self.solver)

    def to_model(self, array: Array) -> Array:
        """Hand an array of the solver's library to the model's."""
        return _convert(array, self.model)

    def on(self, reference: Array) -> Exchange:
        """Return the exchange for a model whose parameters now look like `reference`."""
        if namespace(self.model) is namespace(self.solver):
            return Exchange(reference, reference)
        return _exchange(reference, namespace(self.solver))


def exchange_for(reference: Array, array_backend: str | None) -> Exchange:
    """Return the exchange from `reference`'s library to the one called `array_backend`.

    None asks for the model's own library: the exchange then hands every array through.

    Raises:
        ExchangeError: the library is not installed, follows no array API, or loses precision.
        DeviceError: the library cannot reach the device of `reference`.
    """
    library = check_array_backend(array_backend)
    if library is None:
        return Exchange(reference, reference)
    if library.__name__ in _names(namespace(reference)):
        return Exchange(reference, reference)
    return _exchange(reference, library)


def check_array_backend(array_backend: Any) -> Any:
    """Return the library called `array_backend`, imported, or None for None.

    Raises:
        ExchangeError: it is no name, or no library with the standard's `from_dlpack`.
    """
    if array_backend is None:
        return None
    if not isinstance(array_backend, str):
        raise ExchangeError(
            "`array_backend` must be the name of an array library, such as 'cupy' or 'numpy'; got "
            f"{array_backend!r}."
        )
    name = array_backend.replace("-", "_")
    return _library(_MODULES.get(name, name), array_backend)


def _names(xp: Any) -> set[str]:
    return {xp.__name__, xp.__name__.removeprefix("array_api_compat.")}


def _library(module: str, asked: str) -> Any:
    try:
        library = importlib.import_module(module)
    except ImportError as error:
        raise ExchangeError(
            f"`array_backend={asked!r}` needs the library {module!r}, which cannot be imported "
            f"({error}). Install it, or leave `array_backend` out."
        ) from error
    if not hasattr(library, "from_dlpack"):
        raise ExchangeError(
            f"`array_backend={asked!r}` must name a library with the array API standard's "
            f"`from_dlpack`, such as 'cupy', 'numpy' or 'torch'; {module!r} has none."
        )
    return library


def _exchange(reference: Array, library: Any) -> Exchange:
    return Exchange(reference, _through_dlpack(reference, library, None))


def _convert(array: Array, like: Array) -> Array:
    if namespace(array) is namespace(like):
        return array
    return _through_dlpack(array, namespace(like), device(like))


def _through_dlpack(array: Array, library: Any, target: Any) -> Array:
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        array = array.copy()  # DLPack cannot say "read-only" to every consumer
    if hasattr(array, "detach"):
        array = array.detach()
    try:
        answer = library.from_dlpack(_row_major(array))
    except _REFUSALS as error:
        raise DeviceError(
            f"an array on {device(array)} cannot be handed to {library.__name__!r}: {error}. "
            f"Move the model to a device that this library reaches, or leave `array_backend` out."
        ) from error
    if _bits(answer) != _bits(array):
        raise ExchangeError(
            f"{library.__name__!r} turns {array.dtype} into {answer.dtype}; nothing is rounded "
            f"silently here. Enable 64-bit numbers in that library, or use a float32 model."
        )
    if isinstance(answer, np.ndarray) and not answer.flags.writeable:
        answer = answer.copy()  # older NumPy imports read-only views; an answer is the user's own
    return answer if target is None else move(answer, target)


def _row_major(array: Array) -> Array:
    """Return the array without gaps and in row-major order: copied if it does not lie so.

    JAX takes no part of a wider matrix, and moves the transpose of a matrix to another device as if
    it were the matrix itself (0.10.2): no error, other numbers.
    """
    xp = namespace(array)
    return xp.reshape(xp.reshape(array, (-1,)), array.shape)


def _bits(array: Array) -> int:
    xp = namespace(array)
    info = xp.iinfo if xp.isdtype(array.dtype, "integral") else xp.finfo
    return int(info(array.dtype).bits)
