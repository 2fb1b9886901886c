"""The Python of the README and of the documentation runs as it is printed, without a warning."""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from influence_core import InfluenceWarning

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "examples" / "plugin"))  # a page prints its tests
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
START = ROOT / "docs" / "torch.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHAPE = re.compile(r"# (\(\d+,(?: \d+)*(?:, \d+)*\))")


def blocks_of(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def execute(statement: ast.stmt, page: Path, names: dict[str, Any]) -> Any:
    """Run a statement; return its value, or what it assigned to its only name."""
    if isinstance(statement, ast.Expr):
        return eval(compile(ast.Expression(statement.value), str(page), "eval"), names)
    exec(compile(ast.Module([statement], []), str(page), "exec"), names)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return names[statement.targets[0].id]
    return None


def run(blocks: list[str], page: Path, names: dict[str, Any]) -> int:
    """Run the blocks in one namespace; return how many shapes they print, all of them right."""
    for library in re.findall(r"^(?:import|from) (jax|sklearn)\b", "\n".join(blocks), re.MULTILINE):
        pytest.importorskip(library)
    printed = 0
    for block in blocks:
        lines = block.splitlines()
        for statement in ast.parse(block).body:
            value = execute(statement, page, names)
            line = lines[(statement.end_lineno or 0) - 1]
            if shape := SHAPE.search(line):
                assert tuple(value.shape) == ast.literal_eval(shape.group(1)), line
                printed += 1
    return printed


@pytest.fixture(autouse=True)
def _strictly() -> Iterator[None]:
    """Random numbers from a seed; our warnings are errors, also where other tests let them pass."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.filterwarnings("error", category=InfluenceWarning)
        yield


@pytest.fixture(scope="module")
def started() -> dict[str, Any]:
    """The model and data of the first block of the getting-started page."""
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        run(blocks_of(START)[:1], START, names)
    return names


def test_the_python_of_the_readme_runs() -> None:
    assert run(blocks_of(README), README, {}) > 0


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=name_of)
def test_the_python_of_a_page_runs(page: Path, started: dict[str, Any]) -> None:
    run(blocks_of(page), page, dict(started))


def test_a_wrong_shape_does_not_pass() -> None:
    with pytest.raises(AssertionError, match="shape"):
        run(["import torch\ntorch.zeros(2, 3)  # (2, 4): a wrong shape"], README, {})


def test_every_fence_of_python_is_found() -> None:
    for page in [README, *PAGES]:
        assert page.read_text(encoding="utf-8").count("```py") == len(blocks_of(page)), page


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []
