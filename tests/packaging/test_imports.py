"""What an import costs, and what it offers."""

import importlib
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

FRAMEWORKS = {"cupy", "dask", "jax", "matplotlib", "safetensors", "sklearn", "torch", "zarr"}


def imported_by(module: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after `import module`."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def undocumented(module: ModuleType) -> list[str]:
    """Public classes and functions of `module` without a docstring of their own."""
    public = {name: getattr(module, name) for name in module.__all__}
    return [
        name
        for name, value in public.items()
        if inspect.isclass(value) or inspect.isroutine(value)
        # A dataclass without a docstring is given its signature as one.
        if not value.__doc__ or value.__doc__.startswith(f"{name}(")
    ]


BACKENDS = {
    "influence_jax": "jax",
    "influence_sklearn": "sklearn",
    "influence_torch": "torch",
}


def test_core_import_is_light():
    assert imported_by("influence_core") & (FRAMEWORKS | {*BACKENDS, "scipy"}) == set()


@pytest.mark.parametrize("backend", BACKENDS)
def test_plugins_import_no_framework(backend):
    assert imported_by(f"{backend}.plugin") & FRAMEWORKS == set()


@pytest.mark.parametrize("name", ["influence_core", *BACKENDS])
def test_public_names_are_documented(name):
    if name in BACKENDS:
        pytest.importorskip(BACKENDS[name])
    module = importlib.import_module(name)
    assert module.__doc__
    assert undocumented(module) == []
