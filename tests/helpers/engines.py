"""Requests for a tiny model."""

from typing import Any

from cm3.engine.guidance import ClassifierFree

NOTHING = [1, 5, 2, 3]
GUIDED: dict[str, Any] = dict(guide=ClassifierFree(image=3.0), extra_prompts=[NOTHING])
