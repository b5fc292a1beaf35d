"""Print sizes and dependencies: files, lines and levels of each folder, and imports between folders.

python -m tests.project.graph [FOLDER]

The level of a module is the longest chain of imports from it. Each folder of train/ counts as a package.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGES = ("cm3", "tokenizer_image", "train", "demo", "benchmarks")


def modules(root: Path) -> dict[str, Path]:
    found = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in found
        if path.stem != "__init__" and "configs" not in path.parts
    }


def imports(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder(module: str) -> str:
    return module.rpartition(".")[0].replace(".", "/")


def main(root: Path) -> None:
    known = modules(root)
    edges = {module: set(imports(path)) & known.keys() - {module} for module, path in known.items()}

    @cache
    def level(module: str) -> int:
        below = [level(other) for other in edges[module] if folder(other) == folder(module)]
        return 1 + max(below, default=0)

    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in known.items()}
    print(f"{'folder':22} files  levels  lines  longest")
    for name in sorted({folder(module) for module in known}):
        here = [module for module in known if folder(module) == name]
        sizes = [lines[module] for module in here]
        print(f"{name:22} {len(here):5} {max(map(level, here)):7} {sum(sizes):6} {max(sizes):8}")
    dependencies = Counter(
        (folder(a), folder(b)) for a, others in edges.items() for b in others if folder(a) != folder(b)
    )
    both = [(a, b) for a, b in dependencies if (b, a) in dependencies and a < b]
    print(f"\n{len(dependencies)} imports between folders, {len(both)} of them both ways {both or ''}")
    for (a, b), count in sorted(dependencies.items()):
        print(f"  {a} -> {b} {count}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2])
