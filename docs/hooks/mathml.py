"""A hook of MkDocs: formulas become MathML when the site is built, so that no script sets them.

`pymdownx.arithmatex` finds the formulas, `latex2mathml` translates them.
"""

from __future__ import annotations

import html
import unicodedata
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

# brackets and relations, some of which the translator takes for identifiers
OPERATORS = {"Sm", "Ps", "Pe"}


class MathMLTreeprocessor(Treeprocessor):
    """Replace the TeX in every element of the class `arithmatex`."""

    def run(self, root: Element) -> None:
        for element in root.iter():
            if element.get("class") == "arithmatex":
                translate(element)


class MathML(Extension):
    """Add the processor, to run once the inline patterns have found the formulas."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.treeprocessors.register(MathMLTreeprocessor(md), "mathml", 15)


def translate(element: Element) -> None:
    r"""Put MathML in the place of TeX between `\(…\)` or `\[…\]`.

    Raises:
        PluginError: a command is unknown; the translator would print its name.
    """
    tex = html.unescape(element.text or "").strip()
    display = "block" if tex.startswith(r"\[") else "inline"
    math = convert_to_element(tex[2:-2].strip(), display=display)
    for part in math.iter():
        part.text = html.unescape(part.text or "")
        if part.tag == "mi" and unicodedata.category(part.text[:1] or " ") in OPERATORS:
            part.tag = "mo"  # for the space around it
    unknown = [text for text in math.itertext() if "\\" in text or "&" in text]
    if unknown:
        raise PluginError(f"the formula {tex} has commands that become no MathML: {unknown}")
    element.text = None
    element.append(math)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Hand the extension to Python-Markdown."""
    config.markdown_extensions.append(MathML())
    return config
