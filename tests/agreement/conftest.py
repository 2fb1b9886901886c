"""Makes the plug-in example and the helpers of the core's tests importable, and JAX exact."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "examples" / "plugin")]

try:
    import jax
except ModuleNotFoundError:
    pass
else:
    jax.config.update("jax_enable_x64", True)
