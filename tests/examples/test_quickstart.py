"""The quickstart, with fewer digits: prediction agrees with retraining, the picture is drawn."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

for library in ("torch", "sklearn", "matplotlib"):
    pytest.importorskip(library)

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.fixture
def quickstart(monkeypatch):
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "quickstart", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_predicted_and_actual_changes_agree(quickstart, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(quickstart, "TEST_DIGITS", 2)
    monkeypatch.setattr(quickstart, "REMOVED", 2)
    picture = tmp_path / "picture.png"
    quickstart.main(str(picture))
    printed = capsys.readouterr().out
    (correlation,) = re.findall(r"correlation of predicted and actual change: ([\d.]+)", printed)
    assert float(correlation) >= 0.99
    rows = re.findall(r"^ +\d+ +\d+ +([+-][\d.]+) +([+-][\d.]+)$", printed, re.MULTILINE)
    assert len(rows) == 8
    assert all(float(guess) * float(truth) > 0 for guess, truth in rows)
    assert "most helpful" in printed
    assert picture.stat().st_size > 10_000
