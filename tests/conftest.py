"""Settings that all tests share: above all, who needs a GPU.

`gpu` marks a test that needs a CUDA device which some libraries see: `gpu("torch", "cupy")`; alone
it means torch. The test is skipped where one of them is missing, and the reason says which.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest

# JAX would take most of a GPU for itself, which torch, CuPy and other workers need too
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("gpu"):
            for reason in filter(None, map(missing_gpu, mark.args or ("torch",))):
                item.add_marker(pytest.mark.skip(reason=reason))


@functools.cache
def missing_gpu(library: str) -> str | None:
    """Why no test can run on a GPU with a library; None where it can."""
    # Imported here: the tests of the core run without any of them.
    try:
        module = importlib.import_module(library)
    except ModuleNotFoundError:
        return f"{library} is not installed"
    except ImportError as error:
        return f"{library} cannot be imported: {error}"
    device, sees = SEES[library]
    return None if sees(module) else f"{library} sees no {device}"


def _jax_sees(jax: Any) -> bool:
    try:
        return bool(jax.devices("gpu"))
    except RuntimeError:
        return False


SEES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "torch": ("CUDA device", lambda torch: torch.cuda.is_available()),
    "cupy": ("CUDA device", lambda cupy: cupy.cuda.is_available()),
    "jax": ("GPU", _jax_sees),
}
