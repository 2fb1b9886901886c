"""A hook of MkDocs: the build fails where a page or a style sheet would load from another host."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

# links that are followed by hand, `<a href>`, may lead anywhere
LOADED = {
    "*.html": re.compile(
        r"<(?:script|link|img|source|iframe|object|embed|video|audio)\b[^>]*?"
        r"\b(?:src|srcset|href|data)\s*=\s*[\"']?(?:https?:)?//[^\s\"'>]+",
        re.IGNORECASE,
    ),
    "*.css": re.compile(r"(?:@import\s+[\"']?|url\(\s*[\"']?)(?:https?:)?//[^\s\"')]+"),
}


def on_post_build(config: MkDocsConfig) -> None:
    """Look through the built site.

    Raises:
        PluginError: something is loaded from another host.
    """
    site = Path(config.site_dir)
    found = [
        f"{path.relative_to(site)}: {match.group()}"
        for pattern, loaded in LOADED.items()
        for path in sorted(site.rglob(pattern))
        for match in loaded.finditer(path.read_text(encoding="utf-8"))
    ]
    if found:
        raise PluginError("the site must be readable without a network; " + "\n".join(found))
