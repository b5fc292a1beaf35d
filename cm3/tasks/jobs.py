"""The job of each task: from what people give to requests for the engine, and from its ids to what they get."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from PIL import Image as PIL_Image
from torch import Tensor

from cm3.checks import check_choice, check_single, check_text, is_many
from cm3.engine.options import (
    GREEDY,
    AnswerOptions,
    CaptionOptions,
    CompleteOptions,
    EditOptions,
    GenerateOptions,
    ImageOptions,
    InfillOptions,
    Query,
    SamplingOptions,
    TextOptions,
)
from cm3.tasks.completion import complete
from cm3.tasks.confidence import Rater, marks
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
from cm3.tasks.planning import Drawn, Planning, found
from cm3.tasks.prompts import History, Prompts
from cm3.tasks.reranking import best_of_each
from cm3.tokens.document import HOLE, Document, Image, Item, Text
from cm3.tokens.plan import Plan
from cm3.tokens.templates import WORDS, boxed
from cm3.tokens.templates import prompt as worded
from tokenizer_image.pixels import ImageLike, open_image

Texts = list[str] | tuple[str, ...]


def listed(value: Any) -> list[Any]:
    return list(value) if is_many(value) else [value]


def texts_of(name: str, value: Any) -> list[str]:
    """The texts of a string or a list of strings.

    Raises:
        TypeError: anything else.
    """
    for text in listed(value):
        if not isinstance(text, str):
            has = "holds" if is_many(value) else "is"
            raise TypeError(f"the {name} must be a string or a list of strings, but {has} {text!r:.60}")
    return listed(value)


def images_of(value: Any) -> list[ImageLike]:
    """The images of one image or a list.

    Raises:
        TypeError: a list in the list.
    """
    images = listed(value)
    for image in images:
        check_single("each of the images" if len(images) > 1 else "the image", image)
    return images


def with_plan(image: PIL_Image.Image, plan: Plan | None) -> PIL_Image.Image:
    """The image, which carries its plan as `info["plan"]`, where there is one."""
    if plan is not None:
        image.info["plan"] = str(plan)
    return image


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
    images, each = images_of(images), texts_of(what, texts)
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
        rater: how probable it is that a text is right.

    Raises:
        ValueError: a request that cannot be fulfilled.
        TypeError: an argument of a wrong type.
    """

    processor: Processor
    prompts: Prompts
    known_words: KnownWords
    best: Callable[[str, Sequence[Tensor]], int]
    rater: Rater

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
        drawn = yield from self._draw(prompt, options)
        images = [with_plan(self.processor.decode(codes), plan) for codes, plan in drawn]
        if options.best_of > 1:
            yield Batch([], self._show, pieces=[Piece(i, image) for i, image in enumerate(images)])
        rows = [images[i : i + options.n] for i in range(0, len(images), options.n)]
        return rows if is_many(prompt) else rows[0]

    def draw(self, prompt: str | Texts, options: GenerateOptions = GenerateOptions()) -> Job[list[Drawn]]:
        """As generate, but the result is the codes of all images, and their plans, in one list."""
        return Job(self._draw(prompt, options))

    def _draw(self, prompt: str | Texts, options: GenerateOptions) -> Phases[list[Drawn]]:
        given = self._normalised(texts_of("prompt", prompt), options)
        if options.boxes:
            names = self._normalised([name for name, _ in options.boxes], options)
            boxes = [(name, box) for name, (_, box) in zip(names, options.boxes, strict=True)]
            options = replace(options, boxes=boxes)
        if options.negative_prompt is not None:
            options = replace(options, negative_prompt=self._normalised([options.negative_prompt], options)[0])
        if self.planning and options.structure is not None:
            raise ValueError("a model that plans draws no image after others: leave out structure")
        if self.planning and options.plan is not False:
            if not (isinstance(options.plan, str) or options.boxes or all(words.strip() for words in given)):
                raise ValueError("the prompt is empty: say what to draw")
            return (yield from self.planning.draw(given, options))
        if isinstance(options.plan, str):
            raise ValueError("this model does not plan: leave out plan")
        texts = given
        if options.boxes:
            where = boxed(options.boxes)
            texts = [f"{where} {words.strip()}".strip() for words in given]
        if not all(words.strip() for words in texts):
            raise ValueError("the prompt is empty: say what to draw")
        behind: list[Item] = []
        for image in options.references:
            check_single("each of the references", image)
            behind.append(self.processor.encode(image))
        grid = (int(options.grid[0]), int(options.grid[1])) if options.grid else self.prompts.grid_of(options.size)
        if options.structure is not None:
            check_single("the structure", options.structure)
            followed = self.processor.encode(options.structure)
            behind.append(followed)
            grid = followed.grid if grid is None and followed.grid != self.processor.grid else grid
            texts = [worded(options.kind, words, self.form) for words in texts]
        instead = None
        if options.negative_prompt is not None and options.negative_prompt.strip():
            instead = Document((Text(options.negative_prompt), *behind))
        if grid is not None:
            self.prompts.check_grid(grid)
        drawn = [self.prompts.drawings(Document((Text(words), *behind)), options, instead, grid) for words in texts]
        requests = [request for some in drawn for request in some]
        shown = [i // options.best_of if i % options.best_of == 0 else None for i in range(len(requests))]
        new = yield Batch(requests, self._show, shown)
        objects = ", ".join(name for name, _ in options.boxes or ())
        wanted = [f"{objects} {words}".strip() for words in given for _ in range(options.n)]
        codes = best_of_each(wanted, self.processor.drawn(requests, new), self.best)
        return [Drawn(one, None) for one in codes]

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
        said = self._normalised([prompt], options) if prompt and prompt.strip() else []
        if self.planning and said:
            said = list(map(str, found(said, (yield from self.planning.plans(said, GREEDY, [options.seed])))))
        text = [Text(words) for words in said]
        holed = Document((*text, Image(codes.masked_fill(touched, HOLE))))
        requests = [
            self.prompts.hole(holed, options.guidance, options.sampling, options.seed + i) for i in range(options.n)
        ]

        def show(_: int, drawn: Tensor) -> PIL_Image.Image:
            return paste_back(own, self.processor.decode(drawn), painted, touched, square)

        new = yield Batch(requests, show)
        return [show(i, one) for i, one in enumerate(self.processor.drawn(requests, new))]

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

        def show(i: int, codes: Tensor) -> PIL_Image.Image:
            changed = grown(codes != sources[i].codes)  # the decoder blends each position with its neighbours
            pixels = pixels_of(changed, squares[i], own[i].size)
            return paste_back(own[i], self.processor.decode(codes), pixels, changed, squares[i])

        if self.planning:
            drawn = yield from self.planning.edit(sources, said, options, show)
        elif options.plan is not None:
            raise ValueError("this model does not plan: leave out plan")
        else:
            requests = [self.prompts.edit(text, source, options) for source, text in zip(sources, said, strict=True)]
            drawn = [Drawn(one, None) for one in self.processor.drawn(requests, (yield Batch(requests, show)))]
        images = [with_plan(show(i, codes), plan) for i, (codes, plan) in enumerate(drawn)]
        return images if is_many(image) else images[0]

    @overload
    def caption(self, image: ImageLike, options: CaptionOptions = CaptionOptions()) -> Job[str]: ...
    @overload
    def caption(self, image: Sequence[ImageLike], options: CaptionOptions = CaptionOptions()) -> Job[list[str]]: ...
    def caption(self, image: ImageLike | Sequence[ImageLike], options: CaptionOptions = CaptionOptions()) -> Job[Any]:
        """Describe each image."""
        return Job(self._caption(image, options))

    def _caption(self, image: ImageLike | Sequence[ImageLike], options: CaptionOptions) -> Phases[Any]:
        query = Query(language=options.language, long=options.long)
        texts = yield from self._tell([(one, query) for one in images_of(image)], options)
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
        if options.history and len(pairs) != 1:
            raise ValueError(f"a history belongs to one image, but there are {len(pairs)}")
        texts = yield from self._tell([(one, Query(text)) for one, text in pairs], options, options.history)
        return texts if is_many(image) else texts[0]

    def tell(self, pairs: Sequence[tuple[ImageLike, Query]], options: TextOptions = AnswerOptions()) -> Job[list[str]]:
        """Answer each query about its image. An image that stands in several pairs is encoded once."""
        return Job(self._tell(pairs, options))

    def _tell(
        self, pairs: Sequence[tuple[ImageLike, Query]], options: TextOptions, history: History = ()
    ) -> Phases[list[str]]:
        self.rater.check(options.threshold)
        images = self._encoded([image for image, _ in pairs])
        if self.planning:
            asked = [(image, query) for image, (_, query) in zip(images, pairs, strict=True)]
            return (yield from self.planning.tell(asked, options, history))
        words = [self._words(query) for _, query in pairs]
        before = [(worded("answer", question, self.form), answer.strip()) for question, answer in history]
        asked = zip(words, images, strict=True)
        requests = [self.prompts.text(text, image, options.sampling, options.seed, before) for text, image in asked]
        new = yield Batch(requests, self._show)
        texts = list[str]()
        for (_, query), request, ids in zip(pairs, requests, new, strict=True):
            text = self.processor.text(ids).strip()
            texts.append(self.rater.rated(text, query.reply_language, options.threshold, (request, ids)))
        yield Batch([], self._show, pieces=marks(texts))
        return texts

    def write(
        self, pairs: Sequence[tuple[ImageLike, str]], options: SamplingOptions = AnswerOptions()
    ) -> Job[list[str]]:
        """Write a text for each image and prompt, in the words of the training data (tokens/templates.py)."""
        return Job(self._write(pairs, options))

    def _write(self, pairs: Sequence[tuple[ImageLike, str]], options: SamplingOptions) -> Phases[list[str]]:
        asked = zip((words for _, words in pairs), self._encoded([image for image, _ in pairs]), strict=True)
        requests = [self.prompts.text(text, image, options.sampling, options.seed) for text, image in asked]
        new = yield Batch(requests, self._show)
        return [self.processor.text(ids).strip() for ids in new]

    def _encoded(self, images: Sequence[ImageLike]) -> list[Image]:
        """Codes of each image; one that is given several times is encoded once."""
        encoded: dict[int, Image] = {}
        for image in images:
            if id(image) not in encoded:
                encoded[id(image)] = self.processor.encode(image)
        return [encoded[id(image)] for image in images]

    def complete(self, document: Document, options: CompleteOptions = CompleteOptions()) -> Job[Document]:
        """Complete a document."""
        return Job(complete(self.processor, self.prompts, document, options))

    @property
    def form(self) -> str:
        """The form of the model's documents, one of `cm3.model.config.FORMS`."""
        return self.processor.vocab.form

    @property
    def planning(self) -> Planning | None:
        """The tasks of models that plan; None for others."""
        return Planning(self.processor, self.prompts, self.best, self.rater) if self.form == "plan" else None

    def _words(self, query: Query) -> str:
        """The prompt of a query.

        Raises:
            ValueError: a language that the model does not write.
        """
        if query.question:
            return worded("answer", query.question, self.form)
        words = WORDS[self.form]["describe" if query.long else "caption"]
        check_choice("language", query.language, words)
        return words[query.language]

    def _normalised(self, texts: Sequence[str], options: ImageOptions) -> list[str]:
        """What is said of images, in the words of the training data."""
        return [self.known_words.normal(text) for text in texts] if options.normalise else list(texts)

    def _show(self, _: int, codes: Tensor) -> PIL_Image.Image:
        return self.processor.decode(codes)
