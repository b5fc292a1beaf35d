"""From documents to what the engine is asked for. It sees codes, never pixels.

drawn          words <break> <image> ...
edited         words <break> <image> source </image> <image> ...               also: from edges, from segments
filled in      words <break> <image> codes and holes </image> <image> ...
told, asked    words <mask:0> <break> <image> codes </image> <infill:0> ...

Models that were taught in turns (tokens/encoding.py) get the same without masks: a picture comes before what is said of
it, a hole is filled by drawing the whole picture anew with its other codes fixed, and guidance leaves the text out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain

from cm3.engine.guidance import ClassifierFree, ContrastiveTopK, Guide, ThreeWay
from cm3.engine.options import GenerationOptions, SamplingConfig, check_seed
from cm3.engine.request import Request
from cm3.tokens.alphabet import Alphabet, alphabets
from cm3.tokens.document import HOLE, Document, Image, Mask, Text, pictures_alone, without_text
from cm3.tokens.encoding import draw_ids, next_span_ids, next_turn_ids, nothing, prompt_ids, reply_ids, text_ids
from cm3.tokens.templates import caption_language, prompt
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Grid, Vocab

History = Sequence[tuple[str, str]]  # what was asked, and what was said

MAX_TEXT = 64  # tokens of a caption or an answer
MOST_BEFORE = 2  # earlier questions: documents with masks are taught with three answers at most
CANDIDATE = 0x9E3779B1  # between the seeds of a picture's candidates, in their lower 32 bits


def candidate_seed(seed: int, j: int) -> int:
    """Of the j-th candidate for the picture with this seed, j = 0 its own: seeds that no later picture has."""
    return seed >> 32 << 32 | (seed + j * CANDIDATE) % 2**32


def ways_of(options: GenerationOptions) -> list[tuple[Guide, SamplingConfig]]:
    """How pictures are drawn, in turn. With CD-K guidance, top-p and top-k do not count."""
    free = ClassifierFree(image=options.guidance, schedule=options.guidance_schedule), options.sampling
    contrastive = ContrastiveTopK(*options.contrast), SamplingConfig(options.temperature)
    ways: dict[str, list[tuple[Guide, SamplingConfig]]] = {
        "top-p": [free],
        "cd-k": [contrastive],
        "both": [free, contrastive],
    }
    return ways[options.decoding]


@dataclass(frozen=True)
class Prompts:
    """Makes requests for a model with this vocabulary, text tokenizer, grid of a picture, and context in tokens.
    Errors: ValueError for a picture that does not fit the grid, or a text that cannot fit the context."""

    vocab: Vocab
    text_tokenizer: TextTokenizer
    grid: tuple[int, int]
    context: int

    def ids(self, document: Document, to: Callable[[Document, Vocab, TextTokenizer], list[int]]) -> list[int]:
        most = self.context * self.text_tokenizer.longest  # characters: each has a byte or more
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
        """Errors: ValueError for a grid that the model was not taught."""
        if grid != self.grid and grid not in self.vocab.grids:
            known = ", ".join(f"{rows} x {columns}" for rows, columns in (self.grid, *self.vocab.grids))
            raise ValueError(f"a picture of {grid[0]} x {grid[1]} codes: the model's pictures have {known}")

    @property
    def nothing(self) -> Document:
        """What stands in place of a whole condition in guidance."""
        return nothing(self.vocab)

    def untold(self, document: Document) -> Document:
        """The document without its text."""
        return without_text(document) if self.vocab.has_masks else pictures_alone(document)

    def picture(
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
        """A picture behind the document. others: what stands in its place in the guide's further lanes. grid: its rows
        and columns, None = the usual ones. keep: by how many nats the codes of the document's last picture are likelier
        in their own cells."""
        to = partial(draw_ids, grid=grid)
        ids, *rest = [self.ids(one, to) for one in (document, *others)]
        expected = self.vocab.code_to_id(document[-1].codes.flatten().tolist()) if keep else None
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
        options: GenerationOptions,
        instead: Document | None = None,
        grid: Grid | None = None,
    ) -> list[Request]:
        """n pictures behind the document, `best_of` candidates for each; its way follows from a candidate's seed.
        instead: what guidance leads away from, None = from nothing."""
        ways, requests = ways_of(options), list[Request]()
        instead = self.nothing if instead is None else instead
        for i in range(options.n):
            for j in range(options.best_of):
                guide, sampling = ways[(options.seed + i + j) % len(ways)]
                seed = candidate_seed(options.seed + i, j)
                requests.append(self.picture(document, [instead], guide, sampling, seed, grid=grid))
        return requests

    def edit(self, instruction: str, source: Image, options: GenerationOptions) -> Request:
        """The source as the instruction changes it."""
        document = Document((Text(prompt("edit", instruction, self.vocab.form)), source))
        return self.edited(document, options)

    def edited(self, document: Document, options: GenerationOptions) -> Request:
        """The document's last picture as its words change it."""
        guide = ThreeWay(options.image_guidance, options.text_guidance)
        others = [self.untold(document), self.nothing]
        return self.picture(document, others, guide, options.sampling, options.seed, keep=options.keep)

    def hole(self, document: Document, guidance: float, sampling: SamplingConfig, seed: int) -> Request:
        """The document's last picture again, its holes drawn; guidance: how much the text counts."""
        codes, grid = document[-1].codes.flatten().tolist(), document[-1].grid
        given = [None if code == HOLE else self.vocab.code_to_id(code) for code in codes]
        if not self.vocab.has_masks:
            document = Document(document[:-1])
        guide, untold = ClassifierFree(image=guidance), self.untold(document)
        if not any(isinstance(item, Text) and item.text for item in document):
            return self.picture(untold, [], None, sampling, check_seed(seed), given, grid)
        return self.picture(document, [untold], guide, sampling, check_seed(seed), given, grid)

    def more(
        self, document: Document, guide: ClassifierFree, sampling: SamplingConfig, room: int, seed: int
    ) -> Request:
        """At most so many new ids behind a document without masks."""
        ids, untold = self.ids(document, reply_ids), self.ids(self.untold(document), reply_ids)
        return Request(ids, "document", room, sampling, guide, [untold], seed=check_seed(seed))

    def text(self, words: str, picture: Image, sampling: SamplingConfig, seed: int, before: History = ()) -> Request:
        """What a mask between the words and the picture stands for (CM3leon 4), or the reply to both. before: words and
        texts that came before, of which the last count: MOST_BEFORE with masks, else those that leave room."""
        ids, kept = self.asked(words, picture), list[tuple[str, str]]()
        most = self.context * self.text_tokenizer.longest  # characters, before they are tokenised
        for turn in reversed(before[-MOST_BEFORE:] if self.vocab.has_masks else before):
            kept = [turn, *kept]
            if len(words) + sum(len(text) for one in kept for text in one) > most:
                break
            longer = self.asked(words, picture, kept)
            if len(longer) + MAX_TEXT > self.context:
                break
            ids = longer
        alphabet = self.alphabets.get(caption_language(words, self.vocab.form) or "")
        return Request(ids, "text", MAX_TEXT, sampling, seed=check_seed(seed), alphabet=alphabet)

    @cached_property
    def alphabets(self) -> dict[str, Alphabet]:
        """Of each language, for captions: they are in one, where an answer may be in another."""
        return alphabets(self.text_tokenizer)

    def asked(self, words: str, picture: Image, before: History = ()) -> list[int]:
        """The prompt of text."""
        asked, said = [*(one for one, _ in before), words], [text for _, text in before]
        if not self.vocab.has_masks:
            ids = self.ids(Document((picture, Text(asked[0]))), reply_ids)
            for reply, following in zip(said, asked[1:], strict=True):
                ids += next_turn_ids(reply, following, self.vocab, self.text_tokenizer)
            return ids
        # As documents with several answers are learnt: a mask for each, and the texts behind the picture.
        questions = [(Text((" " if i else "") + one), Mask()) for i, one in enumerate(asked)]
        ids = self.ids(Document((*chain.from_iterable(questions), picture)), prompt_ids)
        for k, text in enumerate(said, 1):
            ids += [*text_ids(text, self.vocab, self.text_tokenizer), *next_span_ids(k, self.vocab)]
        return ids
