"""From documents to requests for the engine. This module works on codes, not on pixels.

    generation               words <break> <image> ...
    editing, structure       words <break> <image> source </image> <image> ...
    inpainting               words <break> <image> codes and holes </image> <image> ...
    captioning, VQA          words <mask:0> <break> <image> codes </image> <infill:0> ...

Models of the form "chameleon" (tokens/encoding.py) have no masks. They read an image before the text about it, inpaint
by drawing the whole image anew with its other codes fixed, and are guided by the same prompt without its text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain

from cm3.engine.guidance import ClassifierFree, ContrastiveTopK, Guide, ThreeWay
from cm3.engine.options import NEGATIVE_GUIDANCE, EditOptions, GenerateOptions, SamplingConfig, check_seed
from cm3.engine.request import Request
from cm3.tensors import to_ints
from cm3.tokens.alphabet import Alphabets
from cm3.tokens.document import HOLE, Document, Image, Mask, Text, images_only, without_text
from cm3.tokens.encoding import (
    image_prompt_ids,
    next_span_ids,
    next_turn_ids,
    open_ids,
    prompt_ids,
    reply_ids,
    text_ids,
    unconditional,
)
from cm3.tokens.templates import PLANS, caption_language, prompt
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Grid, Vocab

History = Sequence[tuple[str, str]]  # questions and answers

MAX_TEXT = 64  # tokens of a caption or an answer
MAX_PLAN = 128  # tokens of a plan
MOST_BEFORE = 2  # earlier questions: training documents with masks have three answers at most
CANDIDATE = 0x9E3779B1  # between the seeds of an image's candidates, in their lower 32 bits


def candidate_seed(seed: int, j: int) -> int:
    """The seed of the j-th candidate of an image. The first candidate has the image's own seed; the others have seeds
    that no later image has."""
    return seed >> 32 << 32 | (seed + j * CANDIDATE) % 2**32


def ways_of(options: GenerateOptions) -> list[tuple[Guide, SamplingConfig]]:
    """The ways of decoding, which images take in turn. With CD-K, guidance, top-p and top-k do not count."""
    leads_away = options.guidance == 1 and bool(options.negative_prompt and options.negative_prompt.strip())
    scale = NEGATIVE_GUIDANCE if leads_away else options.guidance
    free = ClassifierFree(image=scale, schedule=options.guidance_schedule), options.sampling
    contrastive = ContrastiveTopK(*options.contrast), SamplingConfig(temperature=options.temperature)
    ways: dict[str, list[tuple[Guide, SamplingConfig]]] = {
        "top-p": [free],
        "cd-k": [contrastive],
        "both": [free, contrastive],
    }
    return ways[options.decoding]


@dataclass(frozen=True)
class Prompts:
    """Makes requests for one model.

    Attributes:
        vocab: the model's vocabulary.
        text_tokenizer: its text tokenizer.
        grid: its usual grid.
        context: the most tokens of a sequence.

    Raises:
        ValueError: an image of an unknown grid, or a text that cannot fit the context.
    """

    vocab: Vocab
    text_tokenizer: TextTokenizer
    grid: tuple[int, int]
    context: int

    def ids(self, document: Document, to: Callable[[Document, Vocab, TextTokenizer], list[int]]) -> list[int]:
        """The ids of a document by one of the functions of tokens/encoding.py."""
        most = self.context * self.text_tokenizer.max_bytes  # characters: each has a byte or more
        length = sum(len(item.text) for item in document if isinstance(item, Text))
        if length > most:  # before it is tokenised, which takes time and memory
            raise ValueError(
                f"a text of {length:,} characters is too long and leaves no room: the limit is {self.context} tokens, "
                f"which hold {most:,} characters at the very most, so shorten it"
            )
        for item in document:
            if isinstance(item, Image):
                self.check_grid(item.grid)
        return to(document, self.vocab, self.text_tokenizer)

    def check_grid(self, grid: Grid) -> None:
        """Raise a ValueError for a grid that the model does not know."""
        if grid != self.grid and grid not in self.vocab.grids:
            known = ", ".join(f"{rows} x {columns}" for rows, columns in (self.grid, *self.vocab.grids))
            raise ValueError(f"an image of {grid[0]} x {grid[1]} codes: the model's images have {known}")

    @property
    def nothing(self) -> Document:
        """The unconditional prompt of guidance."""
        return unconditional(self.vocab)

    def textless(self, document: Document) -> Document:
        """The document without its text."""
        return without_text(document) if self.vocab.has_masks else images_only(document)

    def image(
        self,
        document: Document,
        others: Sequence[Document],
        guide: Guide | None,
        sampling: SamplingConfig,
        seed: int,
        given: list[int | None] | None = None,
        grid: Grid | None = None,
        keep: float = 0.0,
    ) -> Request:
        """Request an image behind a document.

        Args:
            document: the condition.
            others: what the guide's further prompts read in its place.
            guide: how they count; None for no guidance.
            sampling: how codes are drawn.
            seed: of the image.
            given: ids of the codes that are fixed, row by row; None where one is to be drawn.
            grid: rows and columns; None for the usual ones.
            keep: source bias, in nats, of the codes of the document's last image at their own positions.
        """
        to = partial(image_prompt_ids, grid=grid)
        ids, *rest = [self.ids(one, to) for one in (document, *others)]
        expected = self.vocab.code_to_id(to_ints(document[-1].codes)) if keep else None
        return Request(
            ids,
            "image",
            sampling=sampling,
            guide=guide,
            extra_prompts=rest,
            given=given,
            seed=seed,
            expected=expected,
            logit_bias=keep,
        )

    def drawings(
        self,
        document: Document,
        options: GenerateOptions,
        instead: Document | None = None,
        grid: Grid | None = None,
    ) -> list[Request]:
        """Request n images behind a document, with `best_of` candidates each. The seed decides how a candidate is
        decoded.

        Args:
            document: the condition.
            options: of generation.
            instead: what guidance leads away from; None for an empty condition.
            grid: rows and columns; None for the usual ones.
        """
        return [
            self.candidate(document, options, options.seed + i, j, instead, grid)
            for i in range(options.n)
            for j in range(options.best_of)
        ]

    def candidate(
        self,
        document: Document,
        options: GenerateOptions,
        seed: int,
        j: int,
        instead: Document | None = None,
        grid: Grid | None = None,
    ) -> Request:
        """Request the j-th candidate of the image with this seed. Arguments as for `drawings`."""
        ways = ways_of(options)
        guide, sampling = ways[(seed + j) % len(ways)]
        others = [self.nothing if instead is None else instead]
        return self.image(document, others, guide, sampling, candidate_seed(seed, j), grid=grid)

    def grid_of(self, size: str) -> Grid | None:
        """The grid of a size: "usual" (None), "small" or "large"."""
        if size == "usual":
            return None
        choose = min if size == "small" else max
        return choose((self.grid, *self.vocab.grids), key=lambda grid: grid[0] * grid[1])

    def after(
        self, words: str, sampling: SamplingConfig, seed: int, most: int = MAX_TEXT, language: str | None = None
    ) -> Request:
        """Request a text of at most `most` tokens that follows a text. language: whose letters it has; None = any."""
        ids, alphabet = self.ids(Document((Text(words),)), open_ids), self.alphabets.of(language)
        return Request(ids, "text", most, sampling, seed=check_seed(seed), alphabet=alphabet)

    def edit(self, instruction: str, source: Image, options: EditOptions) -> Request:
        """Request the source as the instruction changes it."""
        document = Document((Text(prompt("edit", instruction, self.vocab.form)), source))
        return self.edited(document, options, options.seed)

    def changed(self, before: str, after: str, source: Image, options: EditOptions, seed: int) -> Request:
        """Request the source, whose plan is `before`, as the plan `after` has it, on the source's grid."""
        document = Document((Text(PLANS["change"].format(before=before, after=after)), source))
        return self.edited(document, options, seed, None if source.grid == self.grid else source.grid)

    def edited(self, document: Document, options: EditOptions, seed: int, grid: Grid | None = None) -> Request:
        """Request the document's last image as its text changes it. grid: None for the usual one."""
        guide = ThreeWay(options.image_guidance, options.text_guidance)
        others = [self.textless(document), self.nothing]
        return self.image(document, others, guide, options.sampling, seed, grid=grid, keep=options.keep)

    def hole(self, document: Document, guidance: float, sampling: SamplingConfig, seed: int) -> Request:
        """Request the document's last image with its holes drawn. guidance: how much the text counts."""
        codes, grid = to_ints(document[-1].codes), document[-1].grid
        given = [None if code == HOLE else self.vocab.code_to_id(code) for code in codes]
        if not self.vocab.has_masks:
            document = Document(document[:-1])
        guide, textless = ClassifierFree(image=guidance), self.textless(document)
        if not any(isinstance(item, Text) and item.text for item in document):
            return self.image(textless, [], None, sampling, check_seed(seed), given, grid)
        return self.image(document, [textless], guide, sampling, check_seed(seed), given, grid)

    def more(
        self, document: Document, guide: ClassifierFree, sampling: SamplingConfig, room: int, seed: int
    ) -> Request:
        """Request at most `room` new ids behind a document without masks."""
        ids, textless = self.ids(document, reply_ids), self.ids(self.textless(document), reply_ids)
        return Request(ids, "document", room, sampling, guide, [textless], seed=check_seed(seed))

    def text(
        self,
        words: str,
        image: Image,
        sampling: SamplingConfig,
        seed: int,
        before: History = (),
        known: tuple[str, str] | None = None,
        most: int = MAX_TEXT,
        behind: str = "",
    ) -> Request:
        """Request a text about an image: what the mask between prompt and image stands for (CM3leon 4), or the reply.

        Args:
            words: the prompt.
            image: what it is about.
            sampling: how tokens are drawn.
            seed: of the text.
            before: earlier prompts and texts. Models with masks read the last MOST_BEFORE, others those that leave
                room.
            known: a prompt and its text that the model always reads first.
            most: tokens of the text.
            behind: a prompt that stands behind `words`, whose text is not written.
        """
        first, kept = [known] if known else [], list[tuple[str, str]]()
        ids = self.question_ids(words, image, first, behind)
        limit = self.context * self.text_tokenizer.max_bytes  # characters, before they are tokenised
        for turn in reversed(before[-MOST_BEFORE:] if self.vocab.has_masks else before):
            kept = [turn, *kept]
            if len(words) + sum(len(text) for one in kept for text in one) > limit:
                break
            longer = self.question_ids(words, image, [*first, *kept], behind)
            if len(longer) + most > self.context:
                break
            ids = longer
        alphabet = self.alphabets.of(caption_language(words, self.vocab.form))
        return Request(ids, "text", most, sampling, seed=check_seed(seed), alphabet=alphabet)

    @cached_property
    def alphabets(self) -> Alphabets:
        """The letters of each language. A caption is in one language; an answer may be in another than its question."""
        return Alphabets(self.text_tokenizer)

    def question_ids(self, words: str, image: Image, before: History = (), behind: str = "") -> list[int]:
        """The prompt ids of a text about an image. Arguments as for `text`."""
        asked, said = [*(one for one, _ in before), words], [text for _, text in before]
        if not self.vocab.has_masks:
            ids = self.ids(Document((image, Text(asked[0]))), reply_ids)
            for reply, following in zip(said, asked[1:], strict=True):
                ids += next_turn_ids(reply, following, self.vocab, self.text_tokenizer)
            return ids
        # As in training documents with several answers: a mask for each, and the texts behind the image.
        questions = [
            (Text((" " if i else "") + one), Mask()) for i, one in enumerate([*asked, behind] if behind else asked)
        ]
        ids = self.ids(Document((*chain.from_iterable(questions), image)), prompt_ids)
        for k, text in enumerate(said, 1):
            ids += [*text_ids(text, self.vocab, self.text_tokenizer), *next_span_ids(k, self.vocab)]
        return ids
