"""Makes the plug-in example and the helpers of the core's tests importable, and JAX exact."""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "examples" / "plugin")]

try:
    import jax
except ModuleNotFoundError:
    pass
else:
    jax.config.update("jax_enable_x64", True)
    # every test builds its models anew, and most of the time would go into compiling them again
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
