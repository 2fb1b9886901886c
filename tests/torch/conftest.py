"""Makes the helpers of this folder (`dense`, `zoo`) importable, where there is torch at all."""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]


def pytest_configure() -> None:
    if importlib.util.find_spec("torch"):
        import torch

        # the models are tiny: more threads only get in each other's way
        torch.set_num_threads(1)
