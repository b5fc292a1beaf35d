"""What each task asks of the engine: from what people give to requests, and from the codes back to what they get."""

# Callers without types are checked.
# pyright: reportUnnecessaryIsInstance=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from PIL import Image as PIL_Image
from torch import Tensor

from cm3.checks import check_choice, check_flag, check_single, check_text, check_whole, is_many
from cm3.engine.options import ANSWER, CAPTION, EDIT, GENERATE, INFILL, NEGATIVE_GUIDANCE, GenerationOptions
from cm3.engine.request import Request
from cm3.tasks.images import Processor
from cm3.tasks.inpainting import grown, middle_square, paste_back, pixels_of, read_mask, square_around, touched_cells
from cm3.tasks.known_words import KnownWords
from cm3.tasks.prompts import History, Prompts
from cm3.tokens.document import HOLE, Document, Image, Item, Text
from cm3.tokens.templates import STRUCTURES, WORDS, Box, boxed
from cm3.tokens.templates import prompt as worded
from cm3.tokens.vocab import Grid
from tokenizer_image.pixels import Picture, open_image


class Job(NamedTuple):
    """requests: one for each text or picture, or for each candidate of a picture, those of one picture side by side.
    show: what makes the picture of this number of its codes, [h, w]. wished: what each picture should show, by which
    the best of its candidates is found."""

    requests: list[Request]
    show: Callable[[int, Tensor], PIL_Image.Image]
    wished: Sequence[str] = ()

    @property
    def best_of(self) -> int:
        """Requests for each picture or text."""
        return len(self.requests) // len(self.wished) if self.wished else 1


def listed(value: Any) -> list[Any]:
    return list(value) if is_many(value) else [value]


def grid_of(value: Any) -> Grid:
    """Errors: TypeError for what is no pair of whole numbers."""
    if not is_many(value) or len(value) != 2:
        raise TypeError(f"grid must be rows and columns, such as (8, 8), but is {value!r:.60}")
    for side in value:
        check_whole("grid", side)
    return int(value[0]), int(value[1])


def texts_of(name: str, value: Any) -> list[str]:
    """Of a str, or of a list of them. Errors: TypeError for anything else."""
    for text in listed(value):
        if not isinstance(text, str):
            has = "holds" if is_many(value) else "is"
            raise TypeError(f"the {name} must be a string or a list of strings, but {has} {text!r:.60}")
    return listed(value)


def paired(images: Any, texts: Any, what: str) -> list[tuple[Picture, str]]:
    """A text for each picture. Errors: ValueError for unequal numbers, or a text without words; TypeError for texts
    that are none, or a list in the list of pictures."""
    images, each = listed(images), texts_of(what, texts)
    for image in images:
        check_single("each of the pictures" if len(images) > 1 else "the picture", image)
    if not all(text.strip() for text in each):
        raise ValueError(f"the {what} is empty: say something about the picture")
    each = each if is_many(texts) else each * len(images)
    if len(each) != len(images):
        raise ValueError(f"{len(images)} pictures and {len(each)} {what}s: give one {what}, or as many")
    return list(zip(images, each, strict=True))


def turns_of(history: Any) -> list[tuple[str, str]]:
    """Errors: TypeError for what is no list of questions and answers, ValueError for one without words."""
    turns = list(history) if is_many(history) else None
    if turns is None or not all(is_many(turn) and [type(text) for text in turn] == [str, str] for turn in turns):
        raise TypeError(
            f"history must be a list of questions and answers, such as [('What is this?', 'a cat')], but is "
            f"{history!r:.60}"
        )
    if not all(text.strip() for turn in turns for text in turn):
        raise ValueError("the history has a question or an answer without words")
    return [(question, answer.strip()) for question, answer in turns]


@dataclass(frozen=True)
class Jobs:
    """Makes the job of each task. Errors: ValueError for what cannot be done, TypeError for what is of a wrong type."""

    processor: Processor
    prompts: Prompts
    known_words: KnownWords

    @property
    def form(self) -> str:
        """Of the model's documents."""
        return self.processor.vocab.form

    def generate(
        self,
        prompt: str | Sequence[str],
        boxes: Sequence[tuple[str, Box]] | None = None,
        structure: Picture | None = None,
        kind: str = "edges",
        negative_prompt: str | None = None,
        references: Sequence[Picture] = (),
        grid: Grid | None = None,
        options: GenerationOptions = GENERATE,
    ) -> Job:
        """n pictures of each prompt, with best_of candidates each."""
        where = "" if boxes is None else boxed(boxes)  # says what is wrong with them
        given = self._put(texts_of("prompt", prompt), options)
        if boxes:
            names = self._put([name for name, _ in boxes], options)
            boxes = [(name, box) for name, (_, box) in zip(names, boxes, strict=True)]
            where = boxed(boxes)
        texts = [f"{where} {words.strip()}".strip() if where else words for words in given]
        if not all(words.strip() for words in texts):
            raise ValueError("the prompt is empty: say what to draw")
        check_choice("kind", kind, STRUCTURES)
        if not is_many(references):
            raise TypeError(f"references must be a list of pictures, but is {references!r:.60}")
        behind: list[Item] = []
        for picture in references:
            check_single("each of the references", picture)
            behind.append(self.processor.image(picture))
        if structure is not None:
            check_single("the structure", structure)
            followed = self.processor.image(structure)
            behind.append(followed)
            grid = followed.grid if grid is None and followed.grid != self.processor.grid else grid
            texts = [worded(kind, words, self.form) for words in texts]
        instead = None
        if negative_prompt is not None:
            check_text("the negative prompt", negative_prompt)
            if negative_prompt.strip():
                instead = Document((Text(*self._put([negative_prompt], options)), *behind))
                options = replace(options, guidance=NEGATIVE_GUIDANCE) if options.guidance == 1 else options
        if grid is not None:
            grid = grid_of(grid)
            self.prompts.check_grid(grid)
        things = ", ".join(name for name, _ in boxes or ())
        wished = [f"{things} {words}".strip() for words in given for _ in range(options.n)]
        drawn = [self.prompts.drawings(Document((Text(words), *behind)), options, instead, grid) for words in texts]
        return Job([request for requests in drawn for request in requests], self._show, wished)

    def infill(
        self, image: Picture, mask: Picture, prompt: str | None = None, options: GenerationOptions = INFILL
    ) -> Job:
        """n fillings of one picture where the mask is white."""
        check_single("the picture", image)
        check_single("the mask", mask)
        if prompt is not None:
            check_text("the prompt", prompt)
        limit = self.processor.max_pixels
        own = open_image(image, limit, None)
        picture = open_image(own, limit)
        painted = read_mask(open_image(mask, limit, "black"), picture.size)
        square = square_around(painted)
        cells = touched_cells(painted, square, self.processor.grid)
        codes = self.processor.image(picture.crop(square.box), usual=True).codes  # [h, w]
        text = [Text(*self._put([prompt], options))] if prompt and prompt.strip() else []
        holed = Document((*text, Image(codes.masked_fill(cells, HOLE))))
        requests = [
            self.prompts.hole(holed, options.guidance, options.sampling, options.seed + i) for i in range(options.n)
        ]

        def show(_: int, drawn: Tensor) -> PIL_Image.Image:
            return paste_back(own, self.processor.picture(drawn), painted, cells, square)

        return Job(requests, show)

    def edit(
        self,
        image: Picture | Sequence[Picture],
        instruction: str | Sequence[str],
        options: GenerationOptions = EDIT,
    ) -> Job:
        """Each picture as its instruction changes it."""
        pairs = paired(image, instruction, "instruction")
        own = [open_image(picture, self.processor.max_pixels, None) for picture, _ in pairs]
        squares = [middle_square(picture.size) for picture in own]
        sources = [self.processor.image(picture, usual=True) for picture in own]
        said = self._put([text for _, text in pairs], options)
        requests = [self.prompts.edit(text, source, options) for source, text in zip(sources, said, strict=True)]

        def show(i: int, codes: Tensor) -> PIL_Image.Image:
            cells = grown(codes != sources[i].codes)  # the decoder blends each cell with those around it
            changed = pixels_of(cells, squares[i], own[i].size)
            return paste_back(own[i], self.processor.picture(codes), changed, cells, squares[i])

        return Job(requests, show)

    def caption(
        self,
        image: Picture | Sequence[Picture],
        language: str = "en",
        long: bool = False,
        options: GenerationOptions = CAPTION,
    ) -> Job:
        """What each picture shows."""
        check_flag("long", long)
        return self.tell(paired(image, self.caption_words(language, long), "prompt"), options)

    def caption_words(self, language: str, long: bool) -> str:
        """What asks for a caption. Errors: ValueError for a language that is not known."""
        words = WORDS[self.form]["describe" if long else "caption"]
        check_choice("language", language, words)
        return words[language]

    def answer(
        self,
        image: Picture | Sequence[Picture],
        question: str | Sequence[str],
        history: History = (),
        options: GenerationOptions = ANSWER,
    ) -> Job:
        """The answer to each picture's question. history: earlier questions and answers about the one picture."""
        pairs = paired(image, question, "question")
        before = [(self.answer_words(asked), answer) for asked, answer in turns_of(history)]
        if before and len(pairs) != 1:
            raise ValueError(f"a history belongs to one picture, but there are {len(pairs)}")
        return self.tell([(picture, self.answer_words(text)) for picture, text in pairs], options, before)

    def answer_words(self, question: str) -> str:
        """What asks a question."""
        return worded("answer", question, self.form)

    def tell(
        self, pairs: Sequence[tuple[Picture, str]], options: GenerationOptions = ANSWER, before: History = ()
    ) -> Job:
        """A text for each picture and prompt, behind the same prompts and texts. A picture that stands in several pairs
        is encoded once."""
        images: dict[int, Image] = {}  # by the identity of what was given
        for picture, _ in pairs:
            if id(picture) not in images:
                images[id(picture)] = self.processor.image(picture)
        asked = ((images[id(picture)], words) for picture, words in pairs)
        requests = [self.prompts.text(words, image, options.sampling, options.seed, before) for image, words in asked]
        return Job(requests, self._show)

    def _put(self, texts: Sequence[str], options: GenerationOptions) -> list[str]:
        """What is said of pictures, as the model is to read it."""
        return [self.known_words.normal(text) for text in texts] if options.normalise else list(texts)

    def _show(self, _: int, codes: Tensor) -> PIL_Image.Image:
        return self.processor.picture(codes)
