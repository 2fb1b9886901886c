"""Makes the helpers of this folder importable, and the models of the tests of every backend."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDERS = ("core", "jax", "sklearn", "torch")
sys.path[:0] = [str(HERE), *(str(HERE.parent / folder) for folder in FOLDERS)]

# the backends whose library is missing; all the rest runs on NumPy
collect_ignore = [
    f"test_{name}.py" for name in ("jax", "sklearn", "torch") if not importlib.util.find_spec(name)
]

if not importlib.util.find_spec("safetensors"):
    collect_ignore_glob = ["test_*.py"]

# the models are tiny, and what is loaded compiles again what was compiled for the fit
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_multi_thread_eigen=false",
)
if importlib.util.find_spec("jax"):
    import jax

    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where nothing was saved yet."""
    return tmp_path / "saved"
