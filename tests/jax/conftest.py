"""Makes the helpers of this folder importable, where there is JAX, and keeps its compiler quick."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

INSTALLED = importlib.util.find_spec("jax") is not None

sys.path.insert(0, str(Path(__file__).parent))

collect_ignore_glob = [] if INSTALLED else ["test_*.py"]

# the models are tiny: compiling them takes the time, not running them; a second CPU is a device
# that is not the default one
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=2",
)


@pytest.fixture(autouse=True)
def x64(request):
    """64-bit numbers, as a test that is marked otherwise does not want them."""
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", getattr(request, "param", True))
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """Keep what was compiled: many tests fit the same model."""
    import jax

    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
