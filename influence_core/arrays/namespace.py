"""Namespaces, devices, dtypes, and the few crossings between the device and the host."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from influence_core.problem import Array


def namespace(*arrays: Array) -> Any:
    """Return the array API namespace of `arrays`; mixed libraries raise `TypeError`."""
    return array_api_compat.array_namespace(*arrays)


def is_array(value: object) -> bool:
    """Tell whether `value` is an array of any library that follows the standard."""
    return array_api_compat.is_array_api_obj(value)


def device(array: Array) -> Any:
    """Return the device that `array` lies on."""
    return array_api_compat.device(array)


def move(array: Array, target: Any) -> Array:
    """Return `array` on the device `target` (itself where it already lies there)."""
    return array_api_compat.to_device(array, target)


def supports_float64(like: Array) -> bool:
    """Tell whether the device of `like` can compute in float64."""
    info = namespace(like).__array_namespace_info__()
    return "float64" in info.dtypes(device=device(like), kind="real floating")


def widen(array: Array) -> Array:
    """Return `array` in float64 where its device has it, unchanged elsewhere."""
    xp = namespace(array)
    return xp.astype(array, xp.float64) if supports_float64(array) else array


def epsilon(like: Array) -> float:
    """Return the spacing of the floating-point numbers of `like` at one."""
    return float(namespace(like).finfo(like.dtype).eps)


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Return zeros in the namespace, dtype and device of `like`."""
    return namespace(like).zeros(shape, dtype=like.dtype, device=device(like))


def ones(shape: tuple[int, ...], like: Array) -> Array:
    """Return ones in the namespace, dtype and device of `like`."""
    return namespace(like).ones(shape, dtype=like.dtype, device=device(like))


def eye(size: int, like: Array) -> Array:
    """Return the identity `(size, size)` in the namespace, dtype and device of `like`."""
    return namespace(like).eye(size, dtype=like.dtype, device=device(like))


def from_host(host: npt.NDArray[Any], like: Array) -> Array:
    """Return floating-point numbers of the host as an array like `like`.

    They are cast on the host: a device may lack float64, and every library then rounds alike.
    """
    xp = namespace(like)
    bits = xp.finfo(like.dtype).bits
    # a copy: several libraries refuse or warn about read-only memory
    copy = np.array(host, dtype=np.float32 if bits <= 32 else np.float64)
    array = xp.asarray(copy, device=device(like))
    return array if array.dtype == like.dtype else xp.astype(array, like.dtype)


def to_host(array: Array) -> npt.NDArray[Any]:
    """Return a NumPy copy of `array`. This stops an asynchronous device."""
    if array_api_compat.is_torch_array(array):
        return np.array(array.detach().cpu().numpy())
    if array_api_compat.is_cupy_array(array):
        return np.array(array.get())
    if namespace(array).__name__ == "array_api_strict":
        array = array.to_device(namespace(array).Device("CPU_DEVICE"))
    return np.array(array)


def matching(value: Any, like: Array) -> Array:
    """Return an array, or nested numbers, in the namespace, dtype and device of `like`."""
    xp = namespace(like)
    if is_array(value) and namespace(value) is xp:
        value = value if value.dtype == like.dtype else xp.astype(value, like.dtype)
        return move(value, device(like))
    return from_host(to_host(value) if is_array(value) else np.asarray(value), like)


def read_float(array: Array) -> float:
    """Read one number from the device. Every such read of the core goes through here."""
    return float(array)


def read_flag(array: Array) -> bool:
    """Read one truth value from the device. Every such read of the core goes through here."""
    return bool(array)
