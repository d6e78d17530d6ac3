"""How Sphinx makes the pages that `make site` writes: they open as files, and ask no other
address for anything.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

project = "tvc"
author = "The tvc authors"
copyright = author
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "tvc"
html_copy_source = False
html_show_search_summary = False  # a page that was opened as a file cannot read others
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
exclude_patterns = ["conf.py", "generate.py"]

FOLDERS = {
    "tutorial": "Tutorial",
    "how-to": "How to",
    "plugin-authors": "For plugin authors",
    "reference": "Reference",
    "explanation": "Explanation",
}


def add_contents(app: Any, name: str, text: list[str]) -> None:
    """Give the first page the lists from which Sphinx makes the contents beside each page."""
    if name != "index":
        return
    for folder, title in FOLDERS.items():
        pages = sorted((Path(app.srcdir) / folder).glob("*.md"))
        lines = "\n".join(f"{folder}/{page.stem}" for page in pages if page.stem != "index")
        first = f"{folder}/index\n" if (Path(app.srcdir) / folder / "index.md").is_file() else ""
        text[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{first}{lines}\n```\n"
    text[0] += "\n```{toctree}\n:hidden:\n\nfaq\n```\n"


def keep_what_is_outside(app: Any, name: str, text: list[str]) -> None:
    """Put files beside the documentation, to which pages link, into the site."""
    here = (Path(app.srcdir) / name).parent

    def changed(link: re.Match[str]) -> str:
        words, target = link.groups()
        path = (here / target).resolve()
        if path.is_relative_to(app.srcdir) or not path.is_file():
            return link[0]
        return f"{{download}}`{words.replace('`', '')} <{target}>`"

    text[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)#]+)\)", changed, text[0])


def setup(app: Any) -> None:
    app.connect("source-read", add_contents)
    app.connect("source-read", keep_what_is_outside)
