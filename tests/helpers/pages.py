"""What the documentation shows: blocks of Python, and command lines, in the order in which a reader meets them."""

import re
from pathlib import Path
from typing import NamedTuple

from checkout import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]  # whose commands and code have to run
ALL = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("*/pretrained/*/README.md")),
]
COMMAND = r"(?:[A-Z_]+=\S+ )?(?:cm3|python|torchrun|make|pip|find) "


class Block(NamedTuple):
    """place: "README.md:34". Python code, or a command line."""

    place: str
    kind: str
    code: str


def blocks(page: Path) -> list[Block]:
    """The Python blocks of a page, and the command lines of its other blocks, without comments."""
    text = page.read_text(encoding="utf-8")
    found: list[tuple[int, str, str]] = []
    for fence in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if fence[1] == "python":
            found.append((fence.start(2), "python", fence[2]))
        else:
            found += lines(fence[2], fence.start(2), "")
    outside = re.sub(r"^```.*?^```", lambda one: re.sub(r"[^\n]", " ", one[0]), text, flags=re.DOTALL | re.MULTILINE)
    found += lines(outside, 0, " {4}")
    named = page.relative_to(ROOT).as_posix()
    return [Block(f"{named}:{text[:at].count(chr(10)) + 1}", kind, code) for at, kind, code in sorted(found)]


def prose(page: Path) -> str:
    """The text of a page without its blocks of code and inline code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE))


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def lines(text: str, start: int, indent: str) -> list[tuple[int, str, str]]:
    """Command lines, each with what goes on behind a backslash."""
    found = re.finditer(rf"^{indent}({COMMAND}(?:\\\n|.)*)$", text, re.MULTILINE)
    return [(start + one.start(1), "shell", joined(one[1])) for one in found]


def joined(line: str) -> str:
    return re.sub(r"\s+#\s.*$", "", re.sub(r"\\\n\s*", " ", line)).strip()
