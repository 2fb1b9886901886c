"""Makes the helpers of this folder, and the array libraries of the core's tests, importable."""

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
sys.path.insert(0, str(Path(__file__).parent))

from namespaces import LIBRARIES

collect_ignore_glob = [] if importlib.util.find_spec("sklearn") else ["test_*.py"]


@pytest.fixture(params=LIBRARIES)
def library(request):
    """Every array library, float32 without float64 included."""
    return request.param
