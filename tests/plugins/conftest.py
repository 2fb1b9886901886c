"""Fake distributions: metadata and modules in a folder of their own."""

import importlib
import importlib.metadata
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from influence_core.plugins import GROUP

Install = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path`, whose distributions are the only ones that are installed."""

    def entry_points(*, group: str) -> importlib.metadata.EntryPoints:
        found = importlib.metadata.distributions(path=[str(tmp_path)])
        entries = [entry for distribution in found for entry in distribution.entry_points]
        return importlib.metadata.EntryPoints(entries).select(group=group)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    """Install a distribution whose only entry point is the module `plugin`.

    `source` is that module's text, or None where the module lies elsewhere.
    """

    def install(distribution: str, plugin: str, source: str | None = None) -> None:
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        name = plugin.partition(".")[0]
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {plugin}\n")
        if source is not None:
            (site / f"{plugin}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    return install


@pytest.fixture
def install_backend(install: Install) -> Install:
    """Install a distribution whose plug-in is well-formed but for the expression it returns."""

    def install_backend(distribution: str, answer: str) -> None:
        plugin = f"plugin_of_{distribution.replace('-', '_')}"
        source = f"""
            from influence_core.plugins import BackendSpec, hookimpl

            @hookimpl
            def influence_backends():
                return {answer}
            """
        install(distribution, plugin, source)

    return install_backend
