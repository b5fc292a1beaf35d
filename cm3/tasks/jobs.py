"""The job of each task: from what people give to requests for the engine, and from its ids to what they get."""

# The arguments of callers without types are checked.
# pyright: reportUnnecessaryIsInstance=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from PIL import Image as PIL_Image
from torch import Tensor

from cm3.checks import check_choice, check_single, check_text, is_many
from cm3.engine.options import (
    NEGATIVE_GUIDANCE,
    AnswerOptions,
    CaptionOptions,
    CompleteOptions,
    EditOptions,
    GenerateOptions,
    ImageOptions,
    InfillOptions,
    SamplingOptions,
)
from cm3.engine.request import Request
from cm3.tasks.completion import complete
from cm3.tasks.images import Processor
from cm3.tasks.inpainting import (
    grown,
    middle_square,
    paste_back,
    pixels_of,
    read_mask,
    square_around,
    touched_positions,
)
from cm3.tasks.job import Batch, Job, Phases, Piece
from cm3.tasks.known_words import KnownWords
from cm3.tasks.prompts import History, Prompts
from cm3.tasks.reranking import best_of_each
from cm3.tokens.document import HOLE, Document, Image, Item, Text
from cm3.tokens.encoding import grid_behind
from cm3.tokens.templates import WORDS, boxed
from cm3.tokens.templates import prompt as worded
from tokenizer_image.pixels import ImageLike, open_image

Texts = list[str] | tuple[str, ...]


def listed(value: Any) -> list[Any]:
    return list(value) if is_many(value) else [value]


def texts_of(name: str, value: Any) -> list[str]:
    """The texts of a string or a list of strings. Raises a TypeError for anything else."""
    for text in listed(value):
        if not isinstance(text, str):
            has = "holds" if is_many(value) else "is"
            raise TypeError(f"the {name} must be a string or a list of strings, but {has} {text!r:.60}")
    return listed(value)


def paired(images: Any, texts: Any, what: str) -> list[tuple[ImageLike, str]]:
    """Pair each image with its text.

    Args:
        images: one image or a list.
        texts: one text for all images, or a list of as many.
        what: the texts' name in messages.

    Raises:
        ValueError: unequal numbers, or an empty text.
        TypeError: a text that is no string, or a list in the list of images.
    """
    images, each = listed(images), texts_of(what, texts)
    for image in images:
        check_single("each of the images" if len(images) > 1 else "the image", image)
    if not all(text.strip() for text in each):
        raise ValueError(f"the {what} is empty: say something about the image")
    each = each if is_many(texts) else each * len(images)
    if len(each) != len(images):
        raise ValueError(f"{len(images)} images and {len(each)} {what}s: give one {what}, or as many")
    return list(zip(images, each, strict=True))


@dataclass(frozen=True)
class Jobs:
    """Makes the job of each task.

    Attributes:
        processor: images and texts to ids and back.
        prompts: documents to requests.
        known_words: how prompts are normalised.
        best: index of those of several codes, [h, w] each, that fit a text best.

    Raises:
        ValueError: a request that cannot be fulfilled.
        TypeError: an argument of a wrong type.
    """

    processor: Processor
    prompts: Prompts
    known_words: KnownWords
    best: Callable[[str, Sequence[Tensor]], int]

    @overload
    def generate(self, prompt: str, options: GenerateOptions = GenerateOptions()) -> Job[list[PIL_Image.Image]]: ...
    @overload
    def generate(
        self, prompt: Texts, options: GenerateOptions = GenerateOptions()
    ) -> Job[list[list[PIL_Image.Image]]]: ...
    def generate(self, prompt: str | Texts, options: GenerateOptions = GenerateOptions()) -> Job[Any]:
        """Draw n images of each prompt, each the best of best_of candidates."""
        return Job(self._generate(prompt, options))

    def _generate(self, prompt: str | Texts, options: GenerateOptions) -> Phases[Any]:
        codes = yield from self._draw(prompt, options)
        images = [self.processor.decode(one) for one in codes]
        if options.best_of > 1:
            yield Batch([], self._show, pieces=[Piece(i, image) for i, image in enumerate(images)])
        rows = [images[i : i + options.n] for i in range(0, len(images), options.n)]
        return rows if is_many(prompt) else rows[0]

    def draw(self, prompt: str | Texts, options: GenerateOptions = GenerateOptions()) -> Job[list[Tensor]]:
        """As generate, but the result is the codes of all images in one list, [h, w] each."""
        return Job(self._draw(prompt, options))

    def _draw(self, prompt: str | Texts, options: GenerateOptions) -> Phases[list[Tensor]]:
        given = self._normalised(texts_of("prompt", prompt), options)
        names = self._normalised([name for name, _ in options.boxes or ()], options)
        texts = given
        if options.boxes:
            where = boxed([(name, box) for name, (_, box) in zip(names, options.boxes, strict=True)])
            texts = [f"{where} {words.strip()}".strip() for words in given]
        if not all(words.strip() for words in texts):
            raise ValueError("the prompt is empty: say what to draw")
        behind: list[Item] = []
        for image in options.references:
            check_single("each of the references", image)
            behind.append(self.processor.encode(image))
        grid = None if options.grid is None else (int(options.grid[0]), int(options.grid[1]))
        if options.structure is not None:
            check_single("the structure", options.structure)
            followed = self.processor.encode(options.structure)
            behind.append(followed)
            grid = followed.grid if grid is None and followed.grid != self.processor.grid else grid
            texts = [worded(options.kind, words, self.form) for words in texts]
        instead = None
        if options.negative_prompt is not None and options.negative_prompt.strip():
            instead = Document((Text(*self._normalised([options.negative_prompt], options)), *behind))
            options = replace(options, guidance=NEGATIVE_GUIDANCE) if options.guidance == 1 else options
        if grid is not None:
            self.prompts.check_grid(grid)
        drawn = [self.prompts.drawings(Document((Text(words), *behind)), options, instead, grid) for words in texts]
        requests = [request for some in drawn for request in some]
        new = yield Batch(requests, self._show, candidates=options.best_of)
        objects = ", ".join(names)
        wanted = [f"{objects} {words}".strip() for words in given for _ in range(options.n)]
        return best_of_each(wanted, self.codes_of(requests, new), self.best)

    def infill(
        self, image: ImageLike, mask: ImageLike, prompt: str | None = None, options: InfillOptions = InfillOptions()
    ) -> Job[list[PIL_Image.Image]]:
        """Redraw an image n times where the mask is white."""
        return Job(self._infill(image, mask, prompt, options))

    def _infill(
        self, image: ImageLike, mask: ImageLike, prompt: str | None, options: InfillOptions
    ) -> Phases[list[PIL_Image.Image]]:
        check_single("the image", image)
        check_single("the mask", mask)
        if prompt is not None:
            check_text("the prompt", prompt)
        limit = self.processor.max_pixels
        own = open_image(image, limit, None)
        opened = open_image(own, limit)
        painted = read_mask(open_image(mask, limit, "black"), opened.size)
        square = square_around(painted)
        touched = touched_positions(painted, square, self.processor.grid)
        codes = self.processor.encode(opened.crop(square.box), usual=True).codes  # [h, w]
        text = [Text(*self._normalised([prompt], options))] if prompt and prompt.strip() else []
        holed = Document((*text, Image(codes.masked_fill(touched, HOLE))))
        requests = [
            self.prompts.hole(holed, options.guidance, options.sampling, options.seed + i) for i in range(options.n)
        ]

        def show(_: int, drawn: Tensor) -> PIL_Image.Image:
            return paste_back(own, self.processor.decode(drawn), painted, touched, square)

        new = yield Batch(requests, show)
        return [show(i, one) for i, one in enumerate(self.codes_of(requests, new))]

    @overload
    def edit(
        self, image: ImageLike, instruction: str, options: EditOptions = EditOptions()
    ) -> Job[PIL_Image.Image]: ...
    @overload
    def edit(
        self, image: Sequence[ImageLike], instruction: str | Sequence[str], options: EditOptions = EditOptions()
    ) -> Job[list[PIL_Image.Image]]: ...
    def edit(
        self,
        image: ImageLike | Sequence[ImageLike],
        instruction: str | Sequence[str],
        options: EditOptions = EditOptions(),
    ) -> Job[Any]:
        """Change each image as its instruction says."""
        return Job(self._edit(image, instruction, options))

    def _edit(
        self, image: ImageLike | Sequence[ImageLike], instruction: str | Sequence[str], options: EditOptions
    ) -> Phases[Any]:
        pairs = paired(image, instruction, "instruction")
        own = [open_image(one, self.processor.max_pixels, None) for one, _ in pairs]
        squares = [middle_square(one.size) for one in own]
        sources = [self.processor.encode(one, usual=True) for one in own]
        said = self._normalised([text for _, text in pairs], options)
        requests = [self.prompts.edit(text, source, options) for source, text in zip(sources, said, strict=True)]

        def show(i: int, codes: Tensor) -> PIL_Image.Image:
            changed = grown(codes != sources[i].codes)  # the decoder blends each position with its neighbours
            pixels = pixels_of(changed, squares[i], own[i].size)
            return paste_back(own[i], self.processor.decode(codes), pixels, changed, squares[i])

        new = yield Batch(requests, show)
        images = [show(i, one) for i, one in enumerate(self.codes_of(requests, new))]
        return images if is_many(image) else images[0]

    @overload
    def caption(self, image: ImageLike, options: CaptionOptions = CaptionOptions()) -> Job[str]: ...
    @overload
    def caption(self, image: Sequence[ImageLike], options: CaptionOptions = CaptionOptions()) -> Job[list[str]]: ...
    def caption(self, image: ImageLike | Sequence[ImageLike], options: CaptionOptions = CaptionOptions()) -> Job[Any]:
        """Describe each image."""
        return Job(self._caption(image, options))

    def _caption(self, image: ImageLike | Sequence[ImageLike], options: CaptionOptions) -> Phases[Any]:
        words = self.caption_prompt(options.language, options.long)
        texts = yield from self._write(paired(image, words, "prompt"), options)
        return texts if is_many(image) else texts[0]

    @overload
    def answer(self, image: ImageLike, question: str, options: AnswerOptions = AnswerOptions()) -> Job[str]: ...
    @overload
    def answer(
        self, image: Sequence[ImageLike], question: str | Sequence[str], options: AnswerOptions = AnswerOptions()
    ) -> Job[list[str]]: ...
    def answer(
        self,
        image: ImageLike | Sequence[ImageLike],
        question: str | Sequence[str],
        options: AnswerOptions = AnswerOptions(),
    ) -> Job[Any]:
        """Answer the question about each image."""
        return Job(self._answer(image, question, options))

    def _answer(
        self, image: ImageLike | Sequence[ImageLike], question: str | Sequence[str], options: AnswerOptions
    ) -> Phases[Any]:
        pairs = paired(image, question, "question")
        before = [(self.question_prompt(asked), answer.strip()) for asked, answer in options.history]
        if before and len(pairs) != 1:
            raise ValueError(f"a history belongs to one image, but there are {len(pairs)}")
        asked = [(one, self.question_prompt(text)) for one, text in pairs]
        texts = yield from self._write(asked, options, before)
        return texts if is_many(image) else texts[0]

    def write(
        self, pairs: Sequence[tuple[ImageLike, str]], options: SamplingOptions = AnswerOptions()
    ) -> Job[list[str]]:
        """Write a text for each image and prompt, as caption_prompt and question_prompt give it. An image that stands
        in several pairs is encoded once."""
        return Job(self._write(pairs, options))

    def _write(
        self, pairs: Sequence[tuple[ImageLike, str]], options: SamplingOptions, before: History = ()
    ) -> Phases[list[str]]:
        images: dict[int, Image] = {}  # by the identity of what was given
        for image, _ in pairs:
            if id(image) not in images:
                images[id(image)] = self.processor.encode(image)
        asked = ((images[id(image)], words) for image, words in pairs)
        requests = [self.prompts.text(words, image, options.sampling, options.seed, before) for image, words in asked]
        new = yield Batch(requests, self._show)
        return [self.processor.text(ids).strip() for ids in new]

    def complete(self, document: Document, options: CompleteOptions = CompleteOptions()) -> Job[Document]:
        """Complete a document."""
        return Job(complete(self.processor, self.prompts, document, options))

    @property
    def form(self) -> str:
        """The form of the model's documents, one of `cm3.model.config.FORMS`."""
        return self.processor.vocab.form

    def caption_prompt(self, language: str, long: bool) -> str:
        """The words that ask for a caption. Raises a ValueError for an unknown language."""
        words = WORDS[self.form]["describe" if long else "caption"]
        check_choice("language", language, words)
        return words[language]

    def question_prompt(self, question: str) -> str:
        """The words that ask a question."""
        return worded("answer", question, self.form)

    def codes_of(self, requests: Sequence[Request], new: Sequence[list[int]]) -> list[Tensor]:
        """The codes, [h, w], of the image that each request drew, from its new ids."""
        grids = [grid_behind(request.prompt, self.processor.vocab) for request in requests]
        return [self.processor.codes(ids, grid) for ids, grid in zip(new, grids, strict=True)]

    def _normalised(self, texts: Sequence[str], options: ImageOptions) -> list[str]:
        """What is said of images, in the words of the training data."""
        return [self.known_words.normal(text) for text in texts] if options.normalise else list(texts)

    def _show(self, _: int, codes: Tensor) -> PIL_Image.Image:
        return self.processor.decode(codes)
