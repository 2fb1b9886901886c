"""Writing a fitted model to disk."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from influence_core.arrays import namespace
from influence_core.fitted import FittedInfluence, Training
from influence_core.problem import Array
from influence_core.storage import data, files, parameters
from influence_core.storage.setup import Setup
from influence_core.storage.state import Host, Packer, Surroundings


def save(
    path: str | os.PathLike[str],
    setup: Setup,
    loss: Any,
    fitted: FittedInfluence,
    training: Training,
) -> None:
    """Write a fitted model to the directory `path`.

    Args:
        path: in an existing directory; fitted state that is there is replaced.
        setup: what the model was made with.
        loss: its loss; only the name is written, for the reader.
        fitted: what was prepared.
        training: what is known of the training data.

    Raises:
        StorageError: something cannot be stored, or writing fails; nothing is changed then.
        CapabilityError: the backend does not hand out what is compared when it is loaded.
        MissingExtraError: safetensors is not installed.
    """
    arrays: dict[str, Host] = {}
    settings = setup.described(arrays)
    first = next(iter(training.curvatures.values()))
    inverses, reads_data = _inverses(setup, fitted, training, arrays)
    batches_matter = any(inverse.batches_matter for inverse in fitted.inverses.values())
    record = {
        "written_by": _versions(fitted.problem.reference),
        **settings,
        "loss": _named(loss),
        "blocks": [asdict(block) for block in fitted.blocks],
        "parameters": parameters.describe(fitted.problem),
        "data": data.describe(first.objective, hashed=reads_data)
        | {"batches_matter": batches_matter},
        "optimality": _optimality(setup, fitted, training, arrays),
        "inverses": inverses,
    }
    files.write(path, record, arrays)


def _inverses(
    setup: Setup, fitted: FittedInfluence, training: Training, arrays: dict[str, Host]
) -> tuple[dict[str, Any], bool]:
    """Return the inverse of every block, and whether one of them reads the data."""
    nodes, reads_data = {}, False
    for name, inverse in fitted.inverses.items():
        at = _surroundings(setup, fitted, fitted.exchange.solver)
        packer = Packer(replace(at, curvature=training.curvatures[name]), arrays)
        nodes[name] = packer.pack(inverse, f"inverses/{name}")
        reads_data = reads_data or packer.reads_data
    return nodes, reads_data


def _optimality(
    setup: Setup, fitted: FittedInfluence, training: Training, arrays: dict[str, Host]
) -> dict[str, Any]:
    at = _surroundings(setup, fitted, fitted.problem.reference)
    node: dict[str, Any] = Packer(at, arrays).pack(training.optimality, "optimality")
    return node


def _surroundings(setup: Setup, fitted: FittedInfluence, reference: Array) -> Surroundings:
    return Surroundings(fitted.problem, fitted.blocks, fitted.exchange, setup.method, reference)


def _versions(reference: Array) -> dict[str, str]:
    library = namespace(reference).__name__.removeprefix("array_api_compat.").partition(".")[0]
    packages = dict.fromkeys(("influence-core", "numpy", "safetensors", library))
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a source tree, or a library of another name
        return "unknown"


def _named(loss: Any) -> str | None:
    if loss is None or isinstance(loss, str):
        return loss
    of = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{of.__module__}:{of.__qualname__}"
