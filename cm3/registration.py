"""The model's place among transformers' Auto classes, taken when these are imported and not before, for they take
seconds: `import cm3` takes none.

config.py, transformer.py, multimodal.py and processing.py register what they define. Here Python learns to import them
right after the modules of transformers in which the Auto classes stand.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

FOLLOWERS = {
    "transformers.models.auto.configuration_auto": "cm3.config",
    "transformers.models.auto.modeling_auto": "cm3.transformer",
    "cm3.transformer": "cm3.multimodal",  # which builds on it
    "transformers.models.auto.processing_auto": "cm3.processing",
}


class Following(MetaPathFinder):
    """Finds the leading modules of FOLLOWERS where Python does, and lets each import its follower at its end."""

    def __init__(self) -> None:
        self.waiting = dict(FOLLOWERS)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        follower = self.waiting.pop(fullname, None)  # once: the search below asks this finder too
        if follower is None:
            return None
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_both(module: ModuleType) -> None:
                execute(module)
                import_module(follower)

            spec.loader.exec_module = execute_both
        return spec


def register() -> None:
    """Register as soon as transformers' Auto classes are imported: now, where they are."""
    for leader, follower in FOLLOWERS.items():
        if leader in sys.modules:
            import_module(follower)
    sys.meta_path.insert(0, Following())
