"""Options of each task: default, limits and help text, each defined once.

Every task has one frozen, keyword-only dataclass. `CM3`, the command line, the server and the web page all read
defaults, limits and help texts from its fields, so that a new option is one new field. This module does not import
torch: the command line checks options before it loads a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from cm3.checks import check_choice, check_flag, check_number, check_text, check_whole, is_many
from cm3.tokens.templates import Box, boxed, language_of

T = TypeVar("T")

MAX_IMAGES = 64  # of one call of generate
MAX_SEED = 2**63
MAX_SCALE = 1e6  # far above any use, and logits times it are still finite
MAX_TEMPERATURE = 1e6  # far above any use, and logits divided by it are still distinguishable
MAX_BIAS = 100.0  # nats; a token that is less likely by so many is never drawn
NEGATIVE_GUIDANCE = 3.0  # guidance scale with a negative prompt where guidance is off
Decoding = Literal["top-p", "cd-k", "both"]
Schedule = Literal["constant", "falling"]
Structure = Literal["edges", "segments"]
# fmt: off
Language = Literal[
    "en", "ar", "es", "fr", "de", "it", "pt", "nl", "pl", "ru", "uk", "tr",
    "fa", "he", "ur", "hi", "bn", "zh", "ja", "ko", "vi", "id", "th", "sw",
]
# fmt: on
Size = Literal["usual", "small", "large"]


class About(NamedTuple):
    """What an option's field says besides its type and default.

    Attributes:
        help: one text for the command line, `help()` and the server's schema.
        least: the smallest allowed value; None for no limit.
        most: the largest allowed value; None for no limit.
        above: as `least`, but not allowed itself.
        slider: lowest value, highest value and step that the web page offers.
    """

    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    slider: tuple[float, float, float] | None = None

    def check(self, name: str, value: float) -> None:
        """Raise a ValueError that names the limits where a number is outside them. NaN always is."""
        low = value >= self.least if self.least is not None else self.above is None or value > self.above
        if not (low and (self.most is None or value <= self.most)):
            raise ValueError(f"{name} is {value}, but must be {self._range()}")

    def _range(self) -> str:
        if self.above is not None:
            return f"above {plain(self.above)} and at most {plain(self.most)}"
        return f"{plain(self.least)} or more" if self.most is None else f"{plain(self.least)} to {plain(self.most)}"


def plain(number: float | None) -> str:
    """A limit as messages show it: 1,000,000 and 0.5."""
    return f"{int(number):,}" if number is not None and number == int(number) else f"{number}"


def option(
    default: T,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    slider: tuple[float, float, float] | None = None,
) -> T:
    """Define the field of an option. See `About` for the arguments."""
    return field(default=default, metadata={"about": About(help, least, most, above, slider)})


def scale(default: float, help: str, slider: tuple[float, float, float] | None = None) -> float:
    """Define the field of a guidance scale."""
    return option(default, help, least=0, most=MAX_SCALE, slider=slider)


def about(options: "type[Options]", name: str) -> About:
    """The help text and limits of an option. A subclass that only changes a default inherits them."""
    for one in options.__mro__:
        found = one.__dict__.get("__dataclass_fields__", {}).get(name)
        if found is not None and "about" in found.metadata:
            return found.metadata["about"]
    raise KeyError(f"{options.__name__} has no option {name}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all options.

    Raises:
        ValueError: a number outside its limits, or a choice that does not exist.
        TypeError: a value of a wrong type.
    """

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if get_origin(one.type) is Literal:
                check_choice(one.name, value, get_args(one.type))
            elif one.type is bool:
                check_flag(one.name, value)
            elif one.type is int:
                check_whole(one.name, value)
                about(type(self), one.name).check(one.name, value)
                object.__setattr__(self, one.name, int(value))  # numpy's integers too
            elif one.type is float or (one.type == float | None and value is not None):
                check_number(one.name, value)
                about(type(self), one.name).check(one.name, value)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Options):
    """How the engine draws a token."""

    temperature: float = option(
        1.0, "0 = greedy; higher = more varied.", least=0, most=MAX_TEMPERATURE, slider=(0, 2, 0.05)
    )
    top_k: int = option(0, "Draw from this many of the likeliest tokens; 0 = all.", least=0)
    top_p: float = option(
        1.0,
        "Draw from the likeliest tokens that together reach this probability; 1 = all.",
        above=0,
        most=1,
        slider=(0.05, 1, 0.05),
    )


GREEDY = SamplingConfig(temperature=0.0)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(SamplingConfig):
    """Options of every task."""

    seed: int = option(0, "The same seed gives the same result.", least=0, most=MAX_SEED - 1)

    @property
    def sampling(self) -> SamplingConfig:
        """What the engine needs of them."""
        return SamplingConfig(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True, kw_only=True)
class ImageOptions(SamplingOptions):
    """Options of every task that gives images."""

    temperature: float = 0.8
    top_p: float = 0.98  # with a lower value scenes stay empty, because each single object is unlikely
    normalise: bool = option(
        True, 'Rewrite the prompt in the words of the training data: "A CAT!" as "a cat", where the model has a list.'
    )


@dataclass(frozen=True, kw_only=True)
class SeveralImagesOptions(ImageOptions):
    """Options of every task that gives several images of one prompt."""

    n: int = option(
        1, "How many images; image i of seed s is image 0 of seed s + i.", least=1, most=MAX_IMAGES, slider=(1, 16, 1)
    )


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(SeveralImagesOptions):
    """Options of text to image."""

    best_of: int = option(
        1,
        "Draw so many candidates for each image, and keep the one that fits the prompt best.",
        least=1,
        most=MAX_IMAGES,
        slider=(1, 4, 1),
    )
    guidance: float = scale(
        1.0,
        f"Classifier-free guidance scale: how much the prompt counts; 1 = off, or {NEGATIVE_GUIDANCE:g} with a "
        "negative prompt.",
        (1, 10, 0.5),
    )
    guidance_schedule: Schedule = option(
        "constant", "falling = guidance falls evenly to 1 from the first to the last image token."
    )
    decoding: Decoding = option(
        "top-p", "cd-k = contrastive decoding, without guidance, top-p and top-k; both = one half each, by the seed."
    )
    contrast: tuple[int, float] = option((8, 0.5), "k and alpha of contrastive decoding.")
    boxes: Sequence[tuple[str, Box]] | None = option(
        None,
        "Objects and their places: (name, (left, top, right, bottom)), as shares of the sides from 0 to 1. The prompt "
        "says the rest, and may be empty.",
    )
    structure: Any = option(None, "An image whose edges or segments the new image follows.")
    kind: Structure = option(
        "edges",
        "What the structure shows: edges, white on black; or segments, objects as flat areas on black, the first in "
        "the prompt red, the second green, the third blue.",
    )
    negative_prompt: str | None = option(None, "What guidance leads away from.")
    references: Sequence[Any] = option((), "Images that stand between the prompt and the new image.")
    grid: tuple[int, int] | None = option(
        None, "Rows and columns of codes, one of the model's grids; None = the usual one, or that of the structure."
    )
    size: Size = option(
        "usual", "small or large = the model's smallest or largest images; several things need the usual size."
    )
    plan: bool | str = option(
        True,
        "Models that plan: True = the model writes a plan first; a text = draw this plan; False = draw the prompt as "
        "it is.",
    )
    variety: float = option(
        0.7,
        "Temperature of the plan: how much images of one prompt differ in what it leaves open.",
        least=0,
        most=MAX_TEMPERATURE,
        slider=(0, 2, 0.05),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        about(GenerateOptions, "n").check("n x best_of", self.n * self.best_of)
        check_contrast(self.contrast)
        if self.boxes is not None:
            boxed(self.boxes)
        if self.negative_prompt is not None:
            check_text("the negative prompt", self.negative_prompt)
        if not is_many(self.references):
            raise TypeError(f"references must be a list of images, but is {self.references!r:.60}")
        if self.grid is not None:
            check_grid(self.grid)
            if self.size != "usual":
                raise ValueError(f"grid is {self.grid} and size {self.size!r}: give one of them")
        if not isinstance(self.plan, (bool, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"plan must be True, False or a text, but is {self.plan!r:.60}")
        if self.plan is not True and self.boxes:
            raise ValueError("boxes are a plan: give boxes or a plan, not both")


@dataclass(frozen=True, kw_only=True)
class InfillOptions(SeveralImagesOptions):
    """Options of inpainting."""

    guidance: float = scale(1.0, "Classifier-free guidance scale: how much the prompt counts; 1 = off.", (0, 10, 0.5))


@dataclass(frozen=True, kw_only=True)
class EditOptions(ImageOptions):
    """Options of editing by an instruction."""

    image_guidance: float = scale(1.0, "Guidance scale of the image: how much the image counts.", (0, 5, 0.25))
    text_guidance: float = scale(
        2.0, "Guidance scale of the instruction: how much the instruction counts.", (0, 10, 0.5)
    )
    keep: float = option(
        3.0,
        "Source bias: by how many nats a code of the image is likelier at its own position.",
        least=0,
        most=MAX_BIAS,
    )
    plan: str | None = option(None, "Models that plan: what the result shows; None = the model writes it.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plan is not None:
            check_text("the plan", self.plan)


@dataclass(frozen=True, kw_only=True)
class TextOptions(SamplingOptions):
    """Options of every task that writes a text about an image."""

    temperature: float = 0.0
    threshold: float | None = option(
        None,
        "Mark a text as not sure where the probability that it is right is below this; 0 = never. By default the "
        "model's own threshold, where the model is calibrated.",
        least=0,
        most=1,
    )


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(TextOptions):
    """Options of captioning."""

    language: Language = option("en", "Language of the caption, one of those that the model writes.")
    long: bool = option(False, "Describe positions and the background too.")
    batch: int = option(32, "Images at once, where an iterator gives them.", least=1)


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(TextOptions):
    """Options of visual question answering."""

    history: Sequence[tuple[str, str]] = option(
        (),
        "Earlier questions about the same image, with their answers, the oldest first; the model reads the last ones.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_history(self.history)


@dataclass(frozen=True, kw_only=True)
class CompleteOptions(SamplingOptions):
    """Options of completing a document."""

    top_p: float = 0.95
    guidance: float = scale(1.0, "Guidance scale where images are drawn: how much the document's text counts; 1 = off.")
    text_guidance: float = scale(
        1.0, "Guidance scale where text is written: how much the document's text counts; 1 = off."
    )


class Query(NamedTuple):
    """What is asked of an image.

    Attributes:
        question: "" asks for a caption.
        language: of the caption.
        long: whether the caption describes positions and the background too.
    """

    question: str = ""
    language: str = "en"
    long: bool = False

    @property
    def reply_language(self) -> str:
        """The language of the reply."""
        return language_of(self.question) if self.question else self.language


def check_seed(seed: int) -> int:
    """The seed as an int.

    Raises:
        ValueError: a seed outside 0 to MAX_SEED - 1.
        TypeError: not a whole number.
    """
    check_whole("seed", seed)
    about(SamplingOptions, "seed").check("seed", seed)
    return int(seed)


def check_scale(what: str, scale: float) -> None:
    """Check a guidance scale of the engine. what: "image" or "text"."""
    check_number(f"the {what} scale of guidance", scale)
    about(GenerateOptions, "guidance").check(f"the {what} scale of guidance", scale)


def check_bias(name: str, nats: float) -> None:
    """Check a number that is added to logits."""
    check_number(name, nats)
    about(EditOptions, "keep").check(name, nats)


def check_contrast(contrast: tuple[int, float]) -> None:
    """Check k and alpha of contrastive decoding."""
    if not is_many(contrast) or len(contrast) != 2:
        raise TypeError(f"contrast must be k and alpha, such as (8, 0.5), but is {contrast!r:.60}")
    k, alpha = contrast
    check_whole("k of contrastive guidance", k)
    check_number("alpha of contrastive guidance", alpha)
    if k < 1:
        raise ValueError(f"k of contrastive guidance must be at least 1, but is {k}")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha of contrastive guidance must be above 0 and at most 1, but is {alpha}")


def check_grid(grid: tuple[int, int]) -> None:
    """Check that a grid is two whole numbers; the model says which grids it knows."""
    if not is_many(grid) or len(grid) != 2:
        raise TypeError(f"grid must be rows and columns, such as (8, 8), but is {grid!r:.60}")
    for side in grid:
        check_whole("grid", side)


def check_history(history: Sequence[tuple[str, str]]) -> None:
    """Check that a history is a list of questions and answers, none of them empty."""
    if not is_many(history) or not all(
        is_many(turn) and [type(text) for text in turn] == [str, str] for turn in history
    ):
        raise TypeError(
            f"history must be a list of questions and answers, such as [('What is this?', 'a cat')], but is "
            f"{history!r:.60}"
        )
    if not all(text.strip() for turn in history for text in turn):
        raise ValueError("the history has an empty question or answer")
