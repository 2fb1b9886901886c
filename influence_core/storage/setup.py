"""What an influence function model was made with, apart from the model and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from influence_core.blocks import BlockStructure
from influence_core.errors import OptionError, StorageError
from influence_core.methods import Method
from influence_core.modes import SecondOrderMode
from influence_core.plugins import BackendSpec
from influence_core.storage.kinds import find, name_of
from influence_core.storage.state import Host, Packer, Unpacker

# the option that changes no answer
_FREE = "max_memory"


@dataclass(frozen=True)
class Setup:
    """The settings of an influence function model.

    Attributes:
        kind: its class.
        backend: what serves the model.
        method: how `C + λI` is inverted.
        regularization: block name to λ.
        block_structure: as it was passed.
        second_order_mode: which curvature is inverted.
        array_backend: the library of the solver's arithmetic.
        options: further keywords of the backend.
    """

    kind: type
    backend: BackendSpec
    method: Method
    regularization: Mapping[str, float]
    block_structure: BlockStructure
    second_order_mode: SecondOrderMode
    array_backend: str | None
    options: Mapping[str, Any]

    def described(self, arrays: dict[str, Host]) -> dict[str, Any]:
        """Return the setup as JSON; arrays that the method holds are put into `arrays`.

        Raises:
            StorageError: the class or the method cannot be described.
        """
        options, passed_again = _describe_options(self.options)
        structure = self.block_structure
        if isinstance(structure, Mapping):
            structure = {name: list(members) for name, members in structure.items()}
        return {
            "class": _class_name(self.kind, package_of(self.backend)),
            "backend": self.backend.name,
            "method": Packer(arrays=arrays).pack(self.method, "method"),
            "regularization": dict(self.regularization),
            "block_structure": structure,
            "second_order_mode": str(self.second_order_mode),
            "array_backend": self.array_backend,
            "options": options,
            "options_passed_again": passed_again,
        }


def package_of(backend: BackendSpec) -> str:
    """Return the top-level package of a backend."""
    return backend.factory.partition(":")[0].partition(".")[0]


def options_of(
    record: Mapping[str, Any], given: Mapping[str, Any], unpacker: Unpacker, where: str
) -> dict[str, Any]:
    """Return the options of the backend: those that were saved, and those that are passed again.

    Raises:
        OptionError: one is missing that could not be stored, or one is not what it was.
    """
    missing = [name for name in record["options_passed_again"] if name not in given]
    if missing:
        raise OptionError(
            f"`{where}` needs {' and '.join(f'`{name}=`' for name in missing)} again, with the "
            "value of the fit: it was passed then, and is nothing that a file can hold."
        )
    for name, value in given.items():
        if name not in record["options_passed_again"] and name != _FREE:
            _check_same(name, value, record["options"].get(name), where)
    saved = {name: unpacker.unpack(node) for name, node in record["options"].items()}
    return {**saved, **given}


def _check_same(name: str, value: Any, saved: Any, where: str) -> None:
    try:
        same = Packer().pack(value, name) == saved
    except StorageError:
        same = False
    if not same:
        raise OptionError(
            f"`{where}` keeps the options of the fit; got {name}={value!r}, where "
            f"{'none' if saved is None else saved} was saved. Leave it out, or fit again."
        )


def _describe_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what can be stored, and the names of what has to be passed again."""
    stored, passed_again = {}, []
    for name, value in options.items():
        try:
            stored[name] = Packer().pack(value, f"options/{name}")
        except StorageError:
            passed_again.append(name)
    return stored, passed_again


def _class_name(kind: type, package: str) -> str:
    """Return the name of the class, which must be made as its package's classes are.

    Raises:
        StorageError: it has an `__init__` of its own.
    """
    core = __name__.partition(".")[0]
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in (core, package):
            break
        if "__init__" in vars(base):
            raise StorageError(
                f"`save` stores the settings of {base.__mro__[1].__qualname__}; {kind.__qualname__}"
                " has an `__init__` of its own, whose arguments are not known. Leave it out: "
                "`load` makes instances without it."
            )
    return name_of(kind)


def class_of(record: Mapping[str, Any], backend: BackendSpec, base: type) -> Any:
    """Return the class of the model that was saved.

    Raises:
        StorageError: it is not there, or no `base`.
    """
    kind = find(record["class"], [package_of(backend)])
    if not issubclass(kind, base):
        raise StorageError(
            f"`load`: {record['class']} is no {base.__name__}. Use the version that the state was "
            "saved with."
        )
    return kind
