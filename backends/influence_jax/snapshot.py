"""The parameters of a model at one moment: copies, by name, and the function that takes them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_flatten_with_path

from influence_core.arrays import is_array
from influence_core.errors import DeviceError, ModelError
from influence_jax.model import Model
from influence_jax.precision import check_precision

_COMPUTED = (jnp.dtype("float32"), jnp.dtype("float64"))
_HALF = (jnp.dtype("float16"), jnp.dtype("bfloat16"))
# the name of the one parameter of a model whose tree is a bare array
_BARE = "params"


class Snapshot:
    """The parameters of a model, copied, and its function.

    Half-precision parameters are computed with in float32.

    Attributes:
        parameters: name to array, in the order of the tree.
        dtype: the dtype of the user's parameters.
        device: where the copies lie.
    """

    def __init__(self, model: Model, device: Any) -> None:
        """Copy the parameters, to `device` if one is given.

        Raises:
            ModelError: the tree holds no parameters, some that cannot be differentiated, or
                numbers that may be parameters or not.
            DataTypeError: they are float64 and JAX is set up without.
            DeviceError: they lie on several devices.
        """
        self._apply = model.apply
        leaves, self._structure = jax.tree.flatten(model.params)
        self._names = _names(model.params)
        for name, leaf in zip(self._names, leaves, strict=True):
            _check_leaf(name, leaf)
        found = {n: p for n, p in zip(self._names, leaves, strict=True) if _is_parameter(p)}
        if not found:
            raise ModelError(
                "`params` must hold at least one floating-point array; got a tree of "
                f"{sorted({type(leaf).__name__ for leaf in leaves})}. Pass the trained parameters."
            )
        self.dtype, compute = _dtypes(found)
        self.device = _device(found) if device is None else find_device(device)
        self.parameters = {name: _copied(p, self.device, compute) for name, p in found.items()}
        self._constants = [None if _is_parameter(leaf) else leaf for leaf in leaves]

    @property
    def compute_dtype(self) -> Any:
        """What is computed in: the parameters' dtype, or float32 where that is shorter."""
        return next(iter(self.parameters.values())).dtype

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """Name to value of the numbers in the tree that are no parameters."""
        named = zip(self._names, self._constants, strict=True)
        numbers = (jax.Array, np.ndarray, np.generic, int, float, complex)
        return {name: np.asarray(leaf) for name, leaf in named if isinstance(leaf, numbers)}

    def __call__(self, parameters: Mapping[str, Array], x: Any) -> Any:
        """Return the outputs at `x`; `parameters` are all of them, by name."""
        leaves = [
            parameters.get(name, constant)
            for name, constant in zip(self._names, self._constants, strict=True)
        ]
        return self._apply(jax.tree.unflatten(self._structure, leaves), x)

    def check(self) -> None:
        """Raise if the parameters cannot be used.

        Raises:
            ModelError: one of them is NaN or infinite.
        """
        for name, parameter in self.parameters.items():
            if not bool(jnp.isfinite(parameter).all()):
                raise ModelError(
                    f"the parameter {name!r} holds NaN or infinity. Train the model anew, or load "
                    "parameters that are finite."
                )

    def to(self, device: Any) -> Snapshot:
        """Return the snapshot on `device`.

        Raises:
            DeviceError: JAX has no such device here.
        """
        moved = copy.copy(self)
        moved.device = find_device(device)
        moved.parameters = {
            name: jax.device_put(p, moved.device) for name, p in self.parameters.items()
        }
        return moved

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what only a process knows: the device by its place, the tree by an example."""
        numbers = jax.tree.unflatten(self._structure, range(len(self._names)))
        return {**self.__dict__, "_structure": numbers, "device": place_of(self.device)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Find the device again, or take the one that there is."""
        self.__dict__.update(state, _structure=jax.tree.structure(state["_structure"]))
        self.device = device_at(state["device"])
        self.parameters = {n: jax.device_put(p, self.device) for n, p in self.parameters.items()}


def find_device(device: Any) -> Any:
    """Return the device of JAX that `device` is or names, such as ``"cpu"`` or ``"gpu:1"``.

    Raises:
        DeviceError: JAX has none of this name.
    """
    if isinstance(device, jax.Device):
        return device
    platform, _, index = str(device).partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceError(
            f"`to({device!r})` needs a device that JAX can use on this machine ({reason}). Pass "
            f"one of {', '.join(map(repr, _known_devices()))}, or of `jax.devices()`."
        ) from error


def place_of(device: Any) -> str:
    """Return the name by which `device_at` finds a device again, in another process too."""
    return f"{device.platform}:{jax.devices(device.platform).index(device)}"


def device_at(place: str) -> Any:
    """Return the device that `place_of` named, or the default one where there is none such."""
    try:
        return find_device(place)
    except DeviceError:
        return jax.devices()[0]


def _known_devices() -> list[str]:
    devices = [*jax.devices(), *jax.devices("cpu")]
    return list(dict.fromkeys(f"{device.platform}:{device.id}" for device in devices))


def _names(params: Any) -> list[str]:
    """Return the dotted paths of the leaves; each must be another."""
    # what Flax NNX wraps an array in is no part of its name
    holders = tree_flatten_with_path(params, is_leaf=_is_nnx_variable)[0]
    paths = [path for path, holder in holders for _ in jax.tree.leaves(holder)]
    names = [keystr(path, simple=True, separator=".") or _BARE for path in paths]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ModelError(
            f"`params` must give every array a dotted path of its own; {twice} stand for several. "
            "Use keys without dots."
        )
    return names


def _is_nnx_variable(node: Any) -> bool:
    return any(
        cls.__name__ == "Variable" and cls.__module__.startswith("flax.nnx")
        for cls in type(node).__mro__
    )


def _is_parameter(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _check_leaf(name: str, leaf: Any) -> None:
    if isinstance(leaf, jax.core.Tracer):
        raise ModelError(
            f"`params` must hold numbers; {name!r} is being traced. Make the model outside of "
            "functions that JAX transforms."
        )
    if isinstance(leaf, jax.Array | np.ndarray):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ModelError(
                f"parameters must be real floating-point numbers; {name!r} is {leaf.dtype}. Split "
                "it into its real and imaginary parts."
            )
        check_precision(leaf.dtype, f"the parameter {name!r}", "cast the parameters to float32")
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ModelError(
                f"`params` must hold numbers; the buffer of {name!r} was donated to a function. "
                "Pass the parameters that this function returned."
            )
    elif is_array(leaf):
        raise ModelError(
            f"`params` must be a tree of JAX arrays; {name!r} is a "
            f"{type(leaf).__module__}.{type(leaf).__qualname__}. Convert it with `jnp.asarray`, or "
            "use the classes of the backend for its library."
        )
    elif isinstance(leaf, float | complex):
        raise ModelError(
            f"`params` must hold numbers that were trained as arrays; {name!r} is the Python "
            f"{type(leaf).__name__} {leaf!r}, which may be a parameter or a constant. Make it a "
            "parameter with `jnp.asarray`, or keep the constant out of the tree and close over it "
            "in `apply` (Equinox: `eqx.partition(model, eqx.is_inexact_array)`)."
        )


def _dtypes(parameters: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the dtype of the parameters, and the one to compute in."""
    dtypes = {jnp.dtype(p.dtype) for p in parameters.values()}
    if len(dtypes) == 1 and dtypes <= set(_HALF):
        return next(iter(dtypes)), jnp.dtype("float32")
    longest = dtypes - set(_HALF)
    if len(longest) > 1 or not longest <= set(_COMPUTED) or (len(dtypes) > 1 and _has_64(dtypes)):
        raise ModelError(
            "the parameters must share one dtype, float32 or float64 (or a half precision); got "
            f"{sorted(map(str, dtypes))}. Convert them, by `jax.tree.map` and `astype`."
        )
    return jnp.dtype("float32") if len(dtypes) > 1 else next(iter(dtypes)), _COMPUTED[
        _has_64(dtypes)
    ]


def _has_64(dtypes: set[Any]) -> bool:
    return jnp.dtype("float64") in dtypes


def _device(parameters: Mapping[str, Any]) -> Any:
    arrays = [p for p in parameters.values() if isinstance(p, jax.Array)]
    devices = {device for p in arrays for device in p.devices()}
    if len(devices) > 1:
        raise DeviceError(
            "the parameters must lie on one device, whole; got "
            f"{sorted(map(str, devices))}. Bring them together with `jax.device_put`."
        )
    return next(iter(devices), jax.devices()[0])


def _copied(parameter: Any, device: Any, dtype: Any) -> Array:
    # a copy: a training loop may donate its buffers
    return jnp.array(parameter, dtype=dtype, copy=True, device=device)


def leading_one(tree: Any) -> Any:
    """Return the arrays of one point as a batch of one."""
    return jax.tree.map(lambda t: t[None], tree)


def split_floats(tree: Any) -> tuple[list[Array], list[Any], Any]:
    """Return the floating-point leaves, all leaves with None in their places, and the structure."""
    leaves, structure = jax.tree.flatten(tree)
    floats = [_is_float(leaf) for leaf in leaves]
    picked = [leaf for leaf, chosen in zip(leaves, floats, strict=True) if chosen]
    rest = [None if chosen else leaf for leaf, chosen in zip(leaves, floats, strict=True)]
    return picked, rest, structure


def with_floats(floats: Sequence[Any], rest: Sequence[Any], structure: Any) -> Any:
    """Return the tree that `split_floats` took apart, with other floating-point leaves."""
    following = iter(floats)
    leaves = [next(following) if leaf is None else leaf for leaf in rest]
    return jax.tree.unflatten(structure, leaves)


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
