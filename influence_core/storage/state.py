"""Fitted state as JSON and arrays, and back: dataclasses by their fields, whatever they mean.

Numbers, strings and None stand for themselves. Everything else is an object with a mark of its own:

    {"class": name, field: …}       a dataclass, or an instance without attributes
    {"tensor": name, …}             an array, in the file of the tensors
    {"reference": name}             what is there without it: an attribute of `Surroundings`
    {"enum": class, "name": …}      {"tuple": […]}     {"mapping": [[key, value], …]}
    {"float": "inf"}                what JSON has no number for

Arrays of the solver come back in its library and on its device; arrays that are annotated as
NumPy's stay on the host. Their order in memory is kept: sums over a transposed array round in
another order.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from influence_core.arrays import Exchange, device, from_host, is_array, namespace, to_host
from influence_core.blocks import Block
from influence_core.curvature import Curvature, Inverse
from influence_core.errors import StorageError
from influence_core.methods import Method, Preconditioner, PreparedPreconditioner
from influence_core.problem import Array, Problem
from influence_core.restoring import maker_of
from influence_core.storage.kinds import find, name_of

Host = npt.NDArray[Any]

_SCALARS = (bool, int, float, str)
# booleans, integers and floating-point numbers
_NUMBERS = "biuf"
# what users write classes of
_OPEN = (Method, Preconditioner, Inverse, PreparedPreconditioner)


@dataclass(frozen=True)
class Surroundings:
    """What state is taken from, or comes back to.

    Attributes:
        problem: the model and loss.
        blocks: all blocks.
        exchange: the way from the model's array library to the solver's.
        method: of the model.
        reference: gives the library, dtype and device of the arrays.
        curvature: of the block that the state belongs to; None where it belongs to all.
    """

    problem: Problem
    blocks: tuple[Block, ...]
    exchange: Exchange
    method: Method
    reference: Array
    curvature: Curvature | None = None


@dataclass
class Packer:
    """Turns state into JSON, and keeps the arrays that it met.

    Attributes:
        at: where the state is; None where it may hold no arrays.
        arrays: name to array on the host, each contiguous.
        reads_data: whether a curvature was met: the data is then needed again.
    """

    at: Surroundings | None = None
    arrays: dict[str, Host] = field(default_factory=dict)
    reads_data: bool = False

    def pack(self, value: Any, path: str, hint: Any = None) -> Any:
        """Return `value` as JSON.

        Args:
            value: what is stored.
            path: where it stands, for messages and as the name of an array.
            hint: its annotation.

        Raises:
            StorageError: it holds something that cannot be stored.
        """
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, Enum):
            return {"enum": name_of(type(value)), "name": value.name}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        if value is None or type(value) in _SCALARS:
            return value
        if self.at is not None:
            for name in ("method", "reference"):
                if value is getattr(self.at, name):
                    return {"reference": name}
        if isinstance(value, Curvature):
            return self._curvature(value, path)
        if is_array(value):
            return self._tensor(value, path, hint)
        return self._structure(value, path, hint)

    def _curvature(self, value: Curvature, path: str) -> dict[str, Any]:
        own = self.at and self.at.curvature
        if own is None or type(value) is not type(own) or value.block != own.block:
            raise StorageError(
                f"`save` stores the inverse of a block; `{path}` is the curvature of another. Let "
                "it have its own, by which `load` replaces it."
            )
        self.reads_data = True
        return {"reference": "curvature"}

    def _structure(self, value: Any, path: str, hint: Any) -> Any:
        if type(value) is list:
            return [self.pack(each, f"{path}/{i}", hint) for i, each in enumerate(value)]
        if type(value) is tuple:
            return {"tuple": [self.pack(each, f"{path}/{i}", hint) for i, each in enumerate(value)]}
        if isinstance(value, Mapping):
            pairs = [
                [self.pack(key, f"{path}/key"), self.pack(child, f"{path}/{key}", hint)]
                for key, child in value.items()
            ]
            return {"mapping": pairs}
        if isinstance(value, type) or not (is_dataclass(value) or _is_bare(value)):
            raise _unstorable(path, value)
        return {"class": name_of(type(value)), **self._fields(value, path)}

    def _fields(self, value: Any, path: str) -> dict[str, Any]:
        if not is_dataclass(value):
            return {}
        hints = _hints(type(value))
        return {
            each.name: self.pack(
                getattr(value, each.name), f"{path}/{each.name}", hints.get(each.name)
            )
            for each in fields(value)
            if each.init and maker_of(each.metadata) is None
        }

    def _tensor(self, array: Array, path: str, hint: Any) -> dict[str, Any]:
        on_host = _on_host(hint)
        if not on_host:
            self._check_solver(array, path)
        host = to_host(array)
        if host.dtype.kind not in _NUMBERS:
            raise _unstorable(path, array)
        axes = _axes_in_memory(host)
        while path in self.arrays:  # a key with a slash may look like a path
            path += "'"
        self.arrays[path] = np.ascontiguousarray(host.transpose(axes)).reshape(
            [host.shape[axis] for axis in axes]
        )
        node = {"tensor": path, "shape": list(host.shape), "dtype": host.dtype.name}
        node |= {"on": "host"} if on_host else {}
        return node | ({} if axes == sorted(axes) else {"axes": axes})

    def _check_solver(self, array: Array, path: str) -> None:
        if self.at is None:
            raise _unstorable(path, array)
        xp = namespace(array)
        of_solver = xp is namespace(self.at.reference)
        if not (of_solver and xp.isdtype(array.dtype, "real floating")):
            raise StorageError(
                f"`save`: `{path}` is an array of {array.dtype} by {xp.__name__}; arrays of the "
                f"solver are floating-point numbers by {namespace(self.at.reference).__name__}. "
                "Annotate others as `numpy.typing.NDArray`, and keep them on the host."
            )


@dataclass(frozen=True)
class Unpacker:
    """Turns JSON into state.

    Attributes:
        arrays: name to array on the host.
        packages: whose classes may be imported.
        at: where the state comes to; None where it holds no arrays.
    """

    arrays: Callable[[str], Host]
    packages: Collection[str]
    at: Surroundings | None = None

    def unpack(self, node: Any) -> Any:
        """Return what `Packer.pack` turned into `node`.

        Raises:
            StorageError: a class is not there, or has other fields.
        """
        if isinstance(node, list):
            return [self.unpack(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "class" in node:  # a keyword, so that no field has this name
            return self._instance(node)
        if "tensor" in node:
            return self._array(node)
        if "reference" in node:
            return getattr(self.at, node["reference"])
        if "enum" in node:
            return self._member(node)
        if "mapping" in node:
            return {self.unpack(key): self.unpack(value) for key, value in node["mapping"]}
        return tuple(map(self.unpack, node["tuple"])) if "tuple" in node else float(node["float"])

    def _instance(self, node: dict[str, Any]) -> Any:
        kind: Any = find(node["class"], self.packages)
        if not (is_dataclass(kind) or issubclass(kind, _OPEN)):
            raise StorageError(f"`load`: {node['class']} is no class that `save` stores.")
        values = {name: self.unpack(child) for name, child in node.items() if name != "class"}
        makers = {f.name: maker_of(f.metadata) for f in fields(kind)} if is_dataclass(kind) else {}
        values |= {name: make(self.at) for name, make in makers.items() if make is not None}
        try:
            return kind(**values)
        except TypeError as error:
            raise StorageError(
                f"`load`: {node['class']} does not take the fields that were saved ({error}). "
                "Use the version that the state was saved with, or fit again."
            ) from error

    def _member(self, node: dict[str, Any]) -> Any:
        kind = find(node["enum"], self.packages)
        if not issubclass(kind, Enum):
            raise StorageError(f"`load`: {node['enum']} is no enumeration.")
        return kind[node["name"]]

    def _array(self, node: dict[str, Any]) -> Array:
        host = self.arrays(node["tensor"])
        array = host if node.get("on") == "host" else self._of_solver(host)
        if "axes" not in node:
            return array
        back = tuple(int(axis) for axis in np.argsort(node["axes"]))
        return namespace(array).permute_dims(array, back)

    def _of_solver(self, host: Host) -> Array:
        assert self.at is not None  # what is packed without surroundings holds arrays of the host
        like = self.at.reference
        xp = namespace(like)
        return from_host(
            host, xp.zeros((), dtype=getattr(xp, host.dtype.name), device=device(like))
        )


def _axes_in_memory(host: Host) -> list[int]:
    """Return the axes from the outermost in memory to the innermost."""
    axes = list(range(host.ndim))
    return axes if host.flags.c_contiguous else sorted(axes, key=lambda axis: -host.strides[axis])


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError as error:
        raise StorageError(
            f"`save`: the annotations of {kind.__qualname__} say which arrays lie on the host, and "
            f"cannot be read: {error}. Import what they name at run time."
        ) from error


def _on_host(hint: Any) -> bool:
    parts = typing.get_args(hint)
    return hint is np.ndarray or typing.get_origin(hint) is np.ndarray or any(map(_on_host, parts))


def _is_bare(value: Any) -> bool:
    """Tell whether this is a method, or a part of one, without attributes that could be lost."""
    return isinstance(value, _OPEN) and getattr(value, "__dict__", {}) == {}


def _unstorable(path: str, value: Any) -> StorageError:
    kind = type(value)
    return StorageError(
        "`save` stores numbers, strings, arrays of numbers, and dataclasses, tuples, lists and "
        f"mappings of them; `{path}` is {kind.__module__}.{kind.__qualname__}. Make it a "
        "dataclass with fields of these kinds."
    )
