"""Methods that take the options of a class as keyword arguments."""

import inspect
from dataclasses import dataclass, fields

import pytest

from cm3 import CM3
from cm3.engine import options
from cm3.engine.options import Options, about, option
from cm3.keywords import keywords

TASKS = {
    "generate": options.GenerateOptions,
    "infill": options.InfillOptions,
    "edit": options.EditOptions,
    "caption": options.CaptionOptions,
    "answer": options.AnswerOptions,
    "complete": options.CompleteOptions,
}


@pytest.mark.parametrize("task", TASKS)
def test_signature_and_help_of_a_task_show_its_options(task: str):
    method, kind = getattr(CM3, task), TASKS[task]
    shown = inspect.signature(method).parameters
    for one in fields(kind):
        assert shown[one.name].kind is inspect.Parameter.KEYWORD_ONLY and shown[one.name].default == one.default
        assert f"{one.name} = {one.default!r}: {about(kind, one.name).help}" in method.__doc__
    assert "options" not in shown


@dataclass(frozen=True, kw_only=True)
class Size(Options):
    width: int = option(3, "How wide.", least=1)


class Cutter:
    @keywords(Size)
    def cut(self, what: str, options: Size) -> str:
        """Cut it."""
        return f"{what} {options.width}"


def test_keyword_arguments_become_an_options_object():
    assert Cutter().cut("a", width=4) == "a 4" and Cutter().cut("a") == "a 3"
    assert Cutter.cut.__doc__ == "Cut it.\n\nOptions:\n    width = 3: How wide."
    with pytest.raises(ValueError, match="width is 0, but must be 1 or more"):
        Cutter().cut("a", width=0)
    with pytest.raises(TypeError, match="cut: got an unexpected keyword argument 'height'; it takes what, width"):
        Cutter().cut("a", height=1)  # pyright: ignore[reportCallIssue]


def test_a_subclass_that_changes_a_default_keeps_help_and_limits():
    @dataclass(frozen=True, kw_only=True)
    class Wide(Size):
        width: int = 9

    assert Wide().width == Wide.width == 9 and about(Wide, "width") == about(Size, "width")
    with pytest.raises(ValueError, match="width is -1"):
        Wide(width=-1)
    with pytest.raises(KeyError, match="Wide has no option depth"):
        about(Wide, "depth")
