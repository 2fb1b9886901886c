"""Makes the helpers of this folder and of the core's tests importable."""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "core")]

# what is written to disk
if not importlib.util.find_spec("zarr"):
    collect_ignore = ["test_killed.py", "test_store.py", "test_to_zarr.py"]
