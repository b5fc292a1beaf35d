"""Hooks of mkdocs.yml: pages that lie outside docs/ appear on the site, and links to them work on both.

Links to other files of the repository, such as CITATION.cff, become plain text: the site does not have them.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
OUTSIDE = {  # file of the repository -> page of the site; a page README.md would be taken for index.md
    "README.md": "overview.md",
    "ARCHITECTURE.md": "ARCHITECTURE.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "SECURITY.md": "SECURITY.md",
    "cm3/pretrained/emoji/README.md": "model-card.md",
}
SOURCES = {page: ROOT / file for file, page in OUTSIDE.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    for page, source in SOURCES.items():
        files.append(File.generated(config, page, content=source.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    uri = page.file.src_uri
    source = SOURCES.get(uri, DOCS / uri)

    def link(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        file = (source.parent / path).resolve()
        if (known := OUTSIDE.get(file.relative_to(ROOT).as_posix())) is None:
            if not file.is_relative_to(DOCS):
                return text
            known = file.relative_to(DOCS).as_posix()
        there = posixpath.relpath(known, posixpath.dirname(uri) or ".")
        return f"{mark}[{text}]({there}{'#' + anchor if anchor else ''})"

    return LINK.sub(link, markdown)
