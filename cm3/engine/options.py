"""How pictures and texts are drawn from the model: one frozen set of options, and the defaults of each task.

The pipeline, the command line, the demo and the evaluations take them from here. No torch: the command line knows what
is allowed before it loads a model.
"""

# What is checked comes from callers without types.
# pyright: reportUnnecessaryIsInstance=false

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, get_args

from cm3.checks import check_choice, check_flag, check_number, check_whole, is_many
from cm3.tokens.templates import Box

MAX_PICTURES = 64  # of one call of generate, and rows of one batch
MAX_SEED = 2**63
MAX_SCALE = 1e6  # far above any use, and logits times it are still finite
MAX_TEMPERATURE = 1e6  # far above any use, and logits divided by it are still told apart
MAX_BIAS = 100.0  # nats; nothing is left of what is less likely by so many
NEGATIVE_GUIDANCE = 3.0  # of a negative prompt where guidance is off
Decoding = Literal["top-p", "cd-k", "both"]
Schedule = Literal["constant", "falling"]
Structure = Literal["edges", "segments"]
Language = Literal["en", "ar"]


def check_seed(seed: int) -> int:
    """The seed as an int. Errors: ValueError outside 0 to MAX_SEED - 1, TypeError for what is no whole number."""
    check_whole("seed", seed)
    if not 0 <= seed < MAX_SEED:
        raise ValueError(f"seed is {seed}, but must be 0 to {MAX_SEED - 1}")
    return int(seed)


def check_scale(what: str, scale: float) -> None:
    """Of guidance by the image or by the text."""
    check_number(f"the {what} scale of guidance", scale)
    if not 0 <= scale < math.inf:
        raise ValueError(f"the {what} scale of guidance must be 0 or more (1 = off), but is {scale}")
    if scale > MAX_SCALE:
        raise ValueError(f"the {what} scale of guidance must be at most {MAX_SCALE:,.0f}, but is {scale}")


def check_bias(name: str, nats: float) -> None:
    """Of logits."""
    check_number(name, nats)
    if not 0 <= nats <= MAX_BIAS:
        raise ValueError(f"{name} must be 0 to {MAX_BIAS:.0f} nats, but is {nats}")


def check_contrast(contrast: tuple[int, float]) -> None:
    """k and alpha of contrastive decoding."""
    if not is_many(contrast) or len(contrast) != 2:
        raise TypeError(f"contrast must be k and alpha, such as (8, 0.5), but is {contrast!r:.60}")
    k, alpha = contrast
    check_whole("k of contrastive guidance", k)
    check_number("alpha of contrastive guidance", alpha)
    if k < 1:
        raise ValueError(f"k of contrastive guidance must be at least 1, but is {k}")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha of contrastive guidance must be above 0 and at most 1, but is {alpha}")


def check_count(name: str, value: int) -> None:
    check_whole(name, value)
    if not 1 <= value <= MAX_PICTURES:
        raise ValueError(f"{name} is {value}, but 1 to {MAX_PICTURES} pictures can be drawn at once")


@dataclass(frozen=True)
class SamplingConfig:
    """temperature: 0 = greedy. top_k: keep the k likeliest, 0 = all. top_p: keep the likeliest that together reach
    this probability, 1 = all. Errors: ValueError for a value outside its limits, TypeError for what is no number."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature)
        check_whole("top_k", self.top_k)
        check_number("top_p", self.top_p)
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"temperature must be 0 (greedy) or more, and at most {MAX_TEMPERATURE:,.0f}, but is {self.temperature}"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, but is {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, but is {self.top_p}")


GREEDY = SamplingConfig(temperature=0.0)


@dataclass(frozen=True)
class GenerationOptions:
    """How to draw; a task reads what concerns it.

    n: how many pictures. best_of: draw so many for each of them, and keep the one that fits the prompt best, in the
    opinion of the model itself and of its scorer, where it has one. seed: of the first picture.
    temperature, top_p, top_k: of sampling.
    guidance: how much the condition counts where a picture is drawn or filled in; 1 = off, and NEGATIVE_GUIDANCE where
    there is a negative prompt, which counts through it. image_guidance, text_guidance: how much the picture and the
    instruction count in an edit; text_guidance also where text is written. keep: in an edit, by how many nats a code of
    the picture is likelier in its own cell: most of them stay as they are.
    normalise: put what is said of a picture as the model read it while it was trained, as far as its folder says
    (cm3/tasks/known_words.py): "A CAT!" is drawn as "a cat".
    guidance_schedule: "falling": from guidance at a drawing's first code evenly down to 1 at its end, for the words
    decide about a picture's first rows more than about its last; without guidance it changes nothing.
    decoding: "top-p"; "cd-k", contrastive decoding, where guidance, top_p and top_k do not count (CM3leon 3.1); or
    "both", one half each, by the seed. contrast: (k, alpha) of "cd-k".
    Errors: ValueError for a value outside its limits, TypeError for one of a wrong type.
    """

    n: int = 1
    best_of: int = 1
    seed: int = 0
    temperature: float = 0.8
    top_p: float = 0.98  # colder, or cut harder, a scene stays empty: each place alone is unlikely
    top_k: int = 0
    guidance: float = 1.0
    image_guidance: float = 1.0
    text_guidance: float = 2.0
    keep: float = 0.0
    decoding: Decoding = "top-p"
    contrast: tuple[int, float] = (8, 0.5)
    guidance_schedule: Schedule = "constant"
    normalise: bool = True

    def __post_init__(self) -> None:
        check_count("n", self.n)
        check_count("best_of", self.best_of)
        check_count("n x best_of", self.n * self.best_of)
        object.__setattr__(self, "seed", check_seed(self.seed))
        check_choice("decoding", self.decoding, get_args(Decoding))
        check_choice("guidance_schedule", self.guidance_schedule, get_args(Schedule))
        check_contrast(self.contrast)
        check_flag("normalise", self.normalise)
        for what, scale in (
            ("image", self.guidance),
            ("image", self.image_guidance),
            ("text", self.text_guidance),
        ):
            check_scale(what, scale)
        check_bias("keep", self.keep)
        _ = self.sampling  # which checks its own

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(self.temperature, self.top_k, self.top_p)


GENERATE = INFILL = GenerationOptions()
EDIT = replace(GENERATE, keep=3.0)
CAPTION = ANSWER = GenerationOptions(temperature=0.0, top_p=1.0)
COMPLETE = GenerationOptions(temperature=1.0, top_p=0.95, guidance=1.0, text_guidance=1.0)

DEFAULTS = {  # of each task
    "generate": GENERATE,
    "infill": INFILL,
    "edit": EDIT,
    "caption": CAPTION,
    "answer": ANSWER,
    "complete": COMPLETE,
}
OPTIONS = {field.name for field in fields(GenerationOptions)}


class GenerateOptions(TypedDict, total=False):
    """More of what CM3.generate takes: best_of, decoding, contrast, guidance_schedule and normalise as in
    GenerationOptions, and conditions.

    boxes: things and where each is to stand, (name, (left, top, right, bottom)), as shares of the sides from 0 to 1;
        the prompt then says the rest, or nothing.
    structure: a picture that the drawing follows, as tokenizer_image opens it.
    kind: of structure: "edges", white on black, or "segments", things as flat areas on black: the first in the prompt
        red, the second green, the third blue.
    negative_prompt: what guidance leads away from, in place of no text at all.
    references: pictures that stand between the words and the drawing.
    grid: rows and columns of codes, one of the model's: its shape. None = the usual one, or the structure's.
    """

    best_of: int
    decoding: Decoding
    contrast: tuple[int, float]
    guidance_schedule: Schedule
    normalise: bool
    boxes: Sequence[tuple[str, Box]] | None
    structure: Any
    kind: Structure
    negative_prompt: str | None
    references: Sequence[Any]
    grid: tuple[int, int] | None


class TellOptions(TypedDict, total=False):
    """long: say also where, and on what. batch: pictures of an iterator at once."""

    temperature: float
    seed: int
    long: bool
    batch: int
