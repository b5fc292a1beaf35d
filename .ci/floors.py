"""pyproject's oldest supported releases as pip constraints: every `name>=floor` becomes `name==floor`.

python .ci/floors.py [NAME==VERSION ...] > floors.txt      # a release named here takes the place of the floor
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def floors(pyproject: dict) -> dict[str, str]:
    """Name -> oldest version, of what the package and its dependency groups need. Errors: ValueError for a
    dependency without a floor."""
    project = pyproject["project"]
    groups = [*project["optional-dependencies"].values(), *pyproject["dependency-groups"].values()]
    needed = [*project["dependencies"], *(item for group in groups for item in group)]
    found = {}
    for requirement in needed:
        if isinstance(requirement, dict) or requirement.startswith(f"{project['name']}["):  # a group of these
            continue
        bounds = requirement.partition(";")[0].strip()  # without its marker
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)(?:,<[\w.]+)?", bounds)
        if not match:
            raise ValueError(f"{requirement!r} must be NAME>=FLOOR or NAME>=FLOOR,<CEILING")
        found[match[1]] = match[2]
    return found


if __name__ == "__main__":
    chosen = floors(tomllib.loads(PYPROJECT.read_text())) | dict(word.split("==") for word in sys.argv[1:])
    print("\n".join(f"{name}=={version}" for name, version in chosen.items()))
