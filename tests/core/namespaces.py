"""The array libraries that every test of the core runs on: one enumeration.

@pytest.mark.parametrize("library", LIBRARIES)
def test_something(library):
    a = library.array(np.ones(3))
    library.close(a + a, 2 * np.ones(3))
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import array_api_strict
import numpy as np
import numpy.typing as npt
import pytest
from array_api_compat import array_namespace, device

# Shapes that depend on values cannot be compiled or kept on a GPU: the core does without.
array_api_strict.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False)


@dataclass(frozen=True)
class Library:
    """An array library, in one configuration.

    Attributes:
        name: shown as the id of the test.
        module: what must be installed.
        dtype: of floating-point arrays.
        device: where its arrays lie; None is where they lie by default.
        writable: whether NumPy arrays may be written into.
    """

    name: str
    module: str
    dtype: str = "float64"
    device: str | None = None
    writable: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def installed(self) -> bool:
        """Whether the library can be imported."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def tolerance(self) -> float:
        """Relative error that a short computation may have."""
        return 1e-10 if self.dtype == "float64" else 1e-4

    def accuracy(self, regularization: float = 1.0) -> float:
        """Relative error that an answer may have: what the contract of the numbers allows."""
        if self.dtype == "float64":
            return 1e-8
        return 1e-4 if regularization >= 1e-2 else 1e-3

    def array(self, host: npt.ArrayLike) -> Any:
        """Hand numbers to the library: floating-point ones in `dtype`, others as they are."""
        host = np.array(host)
        if host.dtype.kind == "f":
            host = host.astype(self.dtype)
        return self._convert(host)

    def _convert(self, host: npt.NDArray[Any]) -> Any:
        if self.module == "torch":
            import torch

            return torch.asarray(host, device=self.device)
        if self.module == "cupy":
            import cupy

            return cupy.asarray(host)
        if self.module == "array_api_strict":
            target = self.device and array_api_strict.Device(self.device)
            return array_api_strict.asarray(host, device=target)
        host.flags.writeable = self.writable
        return host

    def host(self, array: Any) -> npt.NDArray[Any]:
        """Return a NumPy copy; fails for an array of another library, dtype or device."""
        like = self.array(0.0)
        assert array_namespace(array) is array_namespace(like)
        assert (array.dtype, device(array)) == (like.dtype, device(like))
        if self.module == "array_api_strict":
            array = array.to_device(array_api_strict.Device("CPU_DEVICE"))
        if self.module == "torch":
            assert not array.requires_grad
            array = array.cpu().numpy()
        if self.module == "cupy":
            array = array.get()
        return np.array(array)

    def close(self, got: Any, want: npt.ArrayLike, tolerance: float | None = None) -> None:
        """Assert the library, dtype, device, shape and numbers (relative to the largest)."""
        want, got = np.asarray(want), self.host(got)
        assert got.shape == want.shape
        tolerance = self.tolerance if tolerance is None else tolerance
        error, size = np.max(np.abs(got - want), initial=0), np.max(np.abs(want), initial=0)
        assert error <= tolerance * size, f"relative error {error / size if size else error:.1e}"


def _parameter(library: Library) -> Any:
    missing = pytest.mark.skipif(not library.installed, reason=f"{library.module} is not installed")
    return pytest.param(library, marks=missing, id=library.name)


def _on_gpu(library: Library) -> Any:
    return pytest.param(library, marks=pytest.mark.gpu(library.module), id=library.name)


NUMPY = Library("numpy", "numpy")
NUMPY_FLOAT32 = Library("numpy-float32", "numpy", dtype="float32")
READ_ONLY = Library("numpy-read-only", "numpy", writable=False)
STRICT = Library("array-api-strict", "array_api_strict")
STRICT_DEVICE = Library("array-api-strict-device1", "array_api_strict", device="device1")
STRICT_FLOAT32 = Library(
    "array-api-strict-no-float64", "array_api_strict", dtype="float32", device="no_float64"
)
TORCH = Library("torch", "torch")
TORCH_GPU = Library("torch-gpu", "torch", device="cuda")
CUPY = Library("cupy", "cupy")

FLOAT64_LIBRARIES = [
    *(_parameter(library) for library in (NUMPY, READ_ONLY, STRICT, STRICT_DEVICE, TORCH)),
    *(_on_gpu(library) for library in (TORCH_GPU, CUPY)),
]
LIBRARIES = [*FLOAT64_LIBRARIES, _parameter(STRICT_FLOAT32)]
