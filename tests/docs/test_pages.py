"""The Python of the README and of the documentation runs as it is printed, without a warning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "torch.md"]


def code_of(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path) -> None:
    names: dict[str, object] = {}
    exec(compile(code_of(page), str(page), "exec"), names)
    assert "influence" in names


def test_the_shapes_that_the_readme_prints_are_right() -> None:
    names: dict[str, object] = {}
    exec(compile(code_of(ROOT / "README.md"), "README.md", "exec"), names)
    assert names["scores"].shape == (5, 200)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []
