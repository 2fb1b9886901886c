"""Makes the helpers of this folder importable by its tests, and the libraries a fixture."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from namespaces import FLOAT64_LIBRARIES, LIBRARIES


@pytest.fixture(params=LIBRARIES)
def library(request):
    """Every array library, float32 without float64 included."""
    return request.param


@pytest.fixture(params=FLOAT64_LIBRARIES)
def float64_library(request):
    """Every array library that computes in float64."""
    return request.param
