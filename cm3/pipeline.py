"""class CM3: a model, its text tokenizer and its image tokenizer as one thing to use.

    from cm3 import CM3
    model = CM3.from_pretrained("emoji")
    pictures = model.generate("a red apple", n=4, seed=7)
    model.caption(pictures[0]), model.answer(pictures[0], "What is this?")
    model.edit(pictures[0], "make it blue"), model.infill(pictures[0], mask)

Letters in shapes: T tokens, h x w codes of a picture.
"""

# Bodies behind overloads have no types of their own, and torch and transformers have some only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnnecessaryIsInstance=false

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack, cast, overload

import torch
from PIL import Image as PIL_Image
from torch import Tensor

from cm3 import engine
from cm3.checks import check_choice, check_single, check_text, check_whole, is_many
from cm3.document import HOLE, Document, Image, Mask, Text, from_ids, has_mask, prompt_ids, to_ids
from cm3.engine import Request
from cm3.files import (
    check_files,
    check_finite,
    find_model,
    load_image_tokenizer,
    load_transformer,
    write_checksums,
    write_folder,
)
from cm3.guidance import ClassifierFree, ThreeWay
from cm3.holes import grown, middle_square, paste_back, pixels_of, read_mask, square_around, touched_cells
from cm3.pieces import Piece, pieces
from cm3.requests import MAX_TEXT, Requests, check_seed, ways_of
from cm3.sampling import SamplingConfig
from cm3.scorer import Scorer
from cm3.templates import STRUCTURES, TEMPLATES, Box, boxed, language_of
from cm3.templates import prompt as worded
from cm3.text import TextTokenizer
from cm3.transformer import CM3ForCausalLM
from cm3.vocab import Vocab
from tokenizer_image import PRESETS, ImageTokenizer, VQConfig, count_parameters
from tokenizer_image.pixels import MAX_PIXELS, Picture, open_image

MAX_PICTURES = 64  # of one call of generate, and rows of one batch


def check_count(name: str, value: int) -> None:
    check_whole(name, value)
    if not 1 <= value <= MAX_PICTURES:
        raise ValueError(f"{name} is {value}, but 1 to {MAX_PICTURES} pictures can be drawn at once")


def standard(values: Tensor) -> Tensor:  # [N] -> [N]
    """In standard deviations from their mean."""
    return (values - values.mean()) / values.std(correction=0).clamp(min=1e-6)


def device_of(name: str | torch.device) -> torch.device:
    """ "auto" is a GPU if there is one. Errors: ValueError for a device that torch does not know or does not find."""
    if not isinstance(name, str | torch.device):
        raise TypeError(f"device must be a string or a torch.device, but is {name!r:.60}")
    found = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.empty(1, device=found).cpu()  # of "meta" nothing can be copied
    except Exception as error:  # torch raises almost anything
        reason = str(error).splitlines()[0]
        raise ValueError(
            f'device is {str(name)!r}, which cannot be used ({reason:.80}): give "cpu" or "auto"'
        ) from error
    return torch.device(found)


def called(task: str, function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> Any:
    """What the function gives. Errors: TypeError, in the name of the task, for arguments that it does not take."""
    takes = inspect.signature(function)
    try:
        takes.bind(*args, **options)
    except TypeError as error:
        raise TypeError(f"{task}: {error}; it takes {', '.join(takes.parameters)}") from error
    return function(*args, **options)


def listed(value: Any) -> list[Any]:
    return list(value) if is_many(value) else [value]


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


def check_document(document: Any) -> None:
    if not isinstance(document, Document):
        raise TypeError(f'a document is wanted, such as Document((Text("a cat"),)), but got {document!r:.60}')


class Score(NamedTuple):
    """ids: [T - 1], the document after its opening <eos>. log_probs: [T - 1], natural logarithm for each of them."""

    ids: Tensor
    log_probs: Tensor


class Options(TypedDict, total=False):
    """More of what CM3.generate takes.

    best_of: draw so many for each picture, and keep the one that fits the prompt best, in the opinion of the model
        itself and of its scorer, where it has one; 1.
    decoding: "top-p"; "cd-k", contrastive decoding, where guidance, top_p and top_k do not count (CM3leon 3.1); or
        "both", one half each, by the seed.
    contrast: (k, alpha) of "cd-k"; (8, 0.5).
    boxes: things and where each is to stand, (name, (left, top, right, bottom)), as shares of the sides from 0 to 1;
        the prompt then says the rest, or nothing.
    structure: a picture that the drawing follows.
    kind: of structure: "edges", white on black, or "segments", things as flat areas on black: the first in the prompt
        red, the second green, the third blue.
    """

    best_of: int
    decoding: str
    contrast: tuple[int, float]
    boxes: Sequence[tuple[str, Box]] | None
    structure: Picture | None
    kind: str


class Drawing(NamedTuple):
    """Pictures to draw: a request each, and what makes a picture of the codes, [h, w], that one of them gave."""

    requests: list[Request]
    show: Callable[[int, Tensor], PIL_Image.Image]


class TokenizerPreset(NamedTuple):
    """A shape of image tokenizer that has a name; parameters: of the encoder, the decoder, and in all."""

    name: str
    config: VQConfig
    parameters: tuple[int, int, int]


def tokenizer_presets() -> list[TokenizerPreset]:
    """The shapes of image tokenizers that can be trained or imported."""
    return [TokenizerPreset(name, config, count_parameters(config)) for name, config in PRESETS.items()]


class CM3:
    """Draws, edits, fills in, captions, answers, completes and scores. Errors: ValueError for what is given and cannot
    be done, TypeError for what is of a wrong type or an argument that is not known.

    Where a list or a tuple of prompts or pictures may be given, it gives a list of as many, and an empty one an empty
    one.

    Wherever pictures are drawn: temperature (0 = the likeliest), top_p and top_k (0 = all) choose among the codes, and
    the same seed, from 0 to 2^63 - 1, gives the same picture, whatever else is in the batch. A guidance of 1 is off,
    more holds closer to the condition (CM3leon 3.1).
    """

    def __init__(
        self,
        model: CM3ForCausalLM,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        scorer: Scorer | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        config = model.config
        for what, has, wants in (
            ("the text tokenizer's ids", len(text_tokenizer), config.text_vocab_size),
            ("the image tokenizer's codes", image_tokenizer.num_codes, config.image_vocab_size),
        ):
            if has > wants:
                raise ValueError(f"{what} are {has}, but the model knows {wants}: they do not belong together")
        if image_tokenizer.grid != tuple(config.image_grid):
            raise ValueError(
                f"the image tokenizer's grid is {image_tokenizer.grid}, but the model's "
                f"{tuple(config.image_grid)}: they do not belong together"
            )
        if scorer:
            scorer.check(text_tokenizer.fingerprint(), image_tokenizer.fingerprint())
        self.model = model.eval()
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer = image_tokenizer
        self.scorer = scorer
        self.max_pixels = max_pixels
        self.vocab = Vocab.from_config(config)
        self.grid: tuple[int, int] = image_tokenizer.grid
        self.context: int = config.max_position_embeddings
        self.requests = Requests(self.vocab, text_tokenizer, self.grid, self.context)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "emoji",
        device: str | torch.device = "auto",
        *,
        image_tokenizer: str | Path | None = None,
        max_pixels: int = MAX_PIXELS,
        **options: Any,
    ) -> "CM3":
        """An embedded model's name, a model folder, or a hub id (cm3/files.py).

        device: "auto" takes a GPU if there is one. image_tokenizer: an embedded one's name or a folder, for a model
        that brings none. max_pixels: the most that a picture may have (tokenizer_image/pixels.py). options go to
        transformers (dtype, attn_implementation ...)."""
        device = device_of(device)
        folder = find_model(name)
        check_files(folder)
        model = load_transformer(folder, options)
        scorer = folder / "scorer"
        pipeline = cls(
            model,
            TextTokenizer.load(folder),
            load_image_tokenizer(folder, model.config, image_tokenizer),
            Scorer.from_pretrained(scorer) if scorer.is_dir() else None,
            max_pixels,
        )
        return pipeline.to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder that needs nothing outside it."""
        for what, part in (("the model", self.model), ("the image tokenizer", self.image_tokenizer.model)):
            check_finite(part, what)
        with write_folder(Path(folder)) as fresh:
            self.model.save_pretrained(fresh)
            self.text_tokenizer.save(fresh)
            self.image_tokenizer.save_pretrained(fresh / "image_tokenizer")
            if self.scorer:
                self.scorer.save_pretrained(fresh / "scorer")
            write_checksums(fresh)

    def to(self, device: str | torch.device) -> "CM3":
        """Move it, as from_pretrained does."""
        device = device_of(device)
        self.model.to(device)  # pyright: ignore[reportArgumentType]
        self.image_tokenizer.to(device)
        if self.scorer:
            self.scorer.to(device)
        return self

    @overload
    def generate(
        self,
        prompt: str,
        n: int = ...,
        guidance: float = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        seed: int = ...,
        **options: Unpack[Options],
    ) -> list[PIL_Image.Image]: ...
    @overload
    def generate(
        self,
        prompt: list[str],
        n: int = ...,
        guidance: float = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        seed: int = ...,
        **options: Unpack[Options],
    ) -> list[list[PIL_Image.Image]]: ...
    def generate(self, prompt, n=1, guidance=6.0, temperature=0.8, top_p=0.9, top_k=0, seed=0, **options):
        """Draw n pictures of what the prompt says; a list of prompts gives a list of such lists. Picture i of seed s
        is picture 0 of seed s + i. More options: see Options."""
        drawing = called("generate", self._draw, (prompt, n, guidance, temperature, top_p, top_k, seed), options)
        codes = self._codes(drawing.requests)
        if (best_of := options.get("best_of", 1)) > 1:
            things = ", ".join(name for name, _ in options.get("boxes") or ())
            wished = [f"{things} {words}".strip() for words in listed(prompt) for _ in range(n)]
            codes = [self._best(words, codes[i * best_of : (i + 1) * best_of]) for i, words in enumerate(wished)]
        pictures = [self._picture(one) for one in codes]
        return [pictures[i : i + n] for i in range(0, len(pictures), n)] if is_many(prompt) else pictures

    def infill(
        self,
        image: Picture,
        mask: Picture,
        prompt: str | None = None,
        n: int = 1,
        guidance: float = 3.0,
        temperature: float = 0.8,
        top_p: float = 0.9,
        top_k: int = 0,
        seed: int = 0,
    ) -> list[PIL_Image.Image]:
        """Redraw the picture where the mask is white, n times; the prompt says what it all shows, and None leaves that
        to the picture. The result has the picture's size, upright; RGB, or RGBA where the picture has transparency.
        Codes that the mask does not touch stay as they are, and so does every pixel, with its transparency, outside the
        cells of the codes that it touches; what is redrawn is opaque. guidance: how much the prompt counts."""
        drawing = self._redraw(image, mask, prompt, n, guidance, temperature, top_p, top_k, seed)
        return [drawing.show(i, codes) for i, codes in enumerate(self._codes(drawing.requests))]

    @overload
    def edit(
        self,
        image: Picture,
        instruction: str,
        image_guidance: float = ...,
        text_guidance: float = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        seed: int = ...,
    ) -> PIL_Image.Image: ...
    @overload
    def edit(
        self,
        image: Sequence[Picture],
        instruction: str | Sequence[str],
        image_guidance: float = ...,
        text_guidance: float = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        seed: int = ...,
    ) -> list[PIL_Image.Image]: ...
    def edit(
        self, image, instruction, image_guidance=1.5, text_guidance=3.0, temperature=0.8, top_p=0.9, top_k=0, seed=0
    ):
        """The picture as the instruction changes it, with size and transparency as infill gives them. The model sees
        the largest square in its middle: what lies outside stays as it is, and so do the pixels where its codes stay,
        and those around them. A list of pictures gives a list, from one instruction for all or a list of as many.
        image_guidance: how much the picture counts; text_guidance: how much the instruction does."""
        drawing = self._change(image, instruction, image_guidance, text_guidance, temperature, top_p, top_k, seed)
        pictures = [drawing.show(i, codes) for i, codes in enumerate(self._codes(drawing.requests))]
        return pictures if is_many(image) else pictures[0]

    @overload
    def caption(
        self, image: Picture, language: str = ..., temperature: float = ..., seed: int = ..., long: bool = ...
    ) -> str: ...
    @overload
    def caption(
        self, image: Sequence[Picture], language: str = ..., temperature: float = ..., seed: int = ..., long: bool = ...
    ) -> list[str]: ...
    def caption(self, image, language="en", temperature=0.0, seed=0, long=False):
        """What the picture shows, in "en" or "ar"; long: and where, and on what. A list of pictures gives a list of
        str. temperature 0 = greedy."""
        texts = self._texts(self._describe(image, language, temperature, seed, long))
        return texts if is_many(image) else texts[0]

    @overload
    def answer(self, image: Picture, question: str, temperature: float = ..., seed: int = ...) -> str: ...
    @overload
    def answer(
        self, image: Sequence[Picture], question: str | Sequence[str], temperature: float = ..., seed: int = ...
    ) -> list[str]: ...
    def answer(self, image, question, temperature=0.0, seed=0):
        """The answer to a question about the picture. A list of pictures gives a list of str, from one question for
        all or a list of as many."""
        texts = self._texts(self._ask(image, question, temperature, seed))
        return texts if is_many(image) else texts[0]

    def complete(
        self,
        document: Document,
        temperature: float = 1.0,
        top_p: float = 0.95,
        seed: int = 0,
        guidance: float = 1.0,
        text_guidance: float = 1.0,
    ) -> Document:
        """A finished document: holes in its pictures drawn, then its masks filled with text or, if it has none,
        written on with text and pictures until the model ends it. guidance, text_guidance: how much its text counts
        for pictures that are drawn, and for text that is written on."""
        ids: list[int] = []
        deque(self._write(ids, document, temperature, top_p, seed, guidance, text_guidance), maxlen=0)
        return from_ids(ids, self.vocab, self.text_tokenizer, self.grid)

    @torch.inference_mode()
    def score(self, document: Document) -> Score:
        """How likely the model finds each token of a finished document."""
        check_document(document)
        ids = torch.tensor(self.requests.ids(document, to_ids))  # [T]
        if len(ids) > self.context:
            raise ValueError(f"a document of {len(ids)} tokens is too long: the model holds {self.context}")
        logits = self.model(input_ids=ids[None].to(self.model.device)).logits[0, :-1].float().cpu()  # [T - 1, V]
        log_probs = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        return Score(ids[1:], log_probs)

    def stream(self, task: str, *args: Any, **kwargs: Any) -> Iterator[Piece]:
        """ "generate", "infill", "edit", "caption", "answer" or "complete" with its own arguments, piece by piece: text
        as it is written, a picture after each row of its codes with the rest still blank. The pieces of "complete" are
        numbered as the pictures and texts that it writes, holes first."""
        drawn = {"generate": self._draw, "infill": self._redraw, "edit": self._change}
        told = {"caption": self._describe, "answer": self._ask}
        check_text("the task to stream", task)
        if task in drawn:
            if kwargs.get("best_of", 1) != 1:
                raise ValueError("best_of chooses when all pictures are drawn: it cannot be streamed")
            drawing = called(task, drawn[task], args, kwargs)
            return self._pieces(self._stream(drawing.requests), drawing.show)
        if task in told:
            return self._pieces(self._stream(called(task, told[task], args, kwargs)), self._show)
        if task == "complete":
            return self._pieces(called(task, partial(self._write, []), args, kwargs), self._show)
        raise ValueError(f"cannot stream {task!r}: choose one of {', '.join((*drawn, *told, 'complete'))}")

    # What each task asks of the engine.

    def _draw(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        guidance: float = 6.0,
        temperature: float = 0.8,
        top_p: float = 0.9,
        top_k: int = 0,
        seed: int = 0,
        *,
        best_of: int = 1,
        decoding: str = "top-p",
        contrast: tuple[int, float] = (8, 0.5),
        boxes: Sequence[tuple[str, Box]] | None = None,
        structure: Picture | None = None,
        kind: str = "edges",
    ) -> Drawing:
        where = "" if boxes is None else boxed(boxes)
        texts = [f"{where} {words.strip()}".strip() if where else words for words in texts_of("prompt", prompt)]
        if not all(words.strip() for words in texts):
            raise ValueError("the prompt is empty: say what to draw")
        check_count("n", n)
        check_count("best_of", best_of)
        check_count("n x best_of", n * best_of)
        check_choice("kind", kind, STRUCTURES)
        seed = check_seed(seed)
        ways = ways_of(decoding, guidance, SamplingConfig(temperature, top_k, top_p), contrast)
        documents = [Document((Text(words),)) for words in texts]
        if structure is not None:
            check_single("the structure", structure)
            source = self._image(structure)
            documents = [Document((Text(worded(kind, words)), source)) for words in texts]
        drawn = [self.requests.drawings(document, ways, n, best_of, seed) for document in documents]
        return Drawing([request for requests in drawn for request in requests], self._show)

    def _change(
        self,
        image: Picture | Sequence[Picture],
        instruction: str | Sequence[str],
        image_guidance: float = 1.5,
        text_guidance: float = 3.0,
        temperature: float = 0.8,
        top_p: float = 0.9,
        top_k: int = 0,
        seed: int = 0,
    ) -> Drawing:
        guide, sampling = ThreeWay(image_guidance, text_guidance), SamplingConfig(temperature, top_k, top_p)
        seed = check_seed(seed)
        pairs = paired(image, instruction, "instruction")
        own = [open_image(picture, self.max_pixels, None) for picture, _ in pairs]
        squares = [middle_square(picture.size) for picture in own]
        sources = [self._image(picture) for picture in own]
        requests = [
            self.requests.edit(text, source, guide, sampling, seed)
            for source, (_, text) in zip(sources, pairs, strict=True)
        ]

        def show(i: int, codes: Tensor) -> PIL_Image.Image:
            cells = grown(codes != sources[i].codes)  # the decoder blends each cell with those around it
            changed = pixels_of(cells, squares[i], own[i].size)
            return paste_back(own[i], self._picture(codes), changed, cells, squares[i])

        return Drawing(requests, show)

    def _redraw(
        self,
        image: Picture,
        mask: Picture,
        prompt: str | None = None,
        n: int = 1,
        guidance: float = 3.0,
        temperature: float = 0.8,
        top_p: float = 0.9,
        top_k: int = 0,
        seed: int = 0,
    ) -> Drawing:
        check_count("n", n)
        check_single("the picture", image)
        check_single("the mask", mask)
        if prompt is not None:
            check_text("the prompt", prompt)
        sampling = SamplingConfig(temperature, top_k, top_p)
        own = open_image(image, self.max_pixels, None)
        picture = open_image(own, self.max_pixels)
        painted = read_mask(open_image(mask, self.max_pixels, "black"), picture.size)
        square = square_around(painted)
        cells = touched_cells(painted, square, self.grid)
        codes = self._image(picture.crop(square.box)).codes  # [h, w]
        text = [Text(prompt)] if prompt and prompt.strip() else []
        holed = Document((*text, Image(codes.masked_fill(cells, HOLE))))
        seed = check_seed(seed)
        requests = [self.requests.hole(holed, guidance, sampling, seed + i) for i in range(n)]
        return Drawing(requests, lambda i, drawn: paste_back(own, self._picture(drawn), painted, cells, square))

    def _describe(
        self,
        image: Picture | Sequence[Picture],
        language: str = "en",
        temperature: float = 0.0,
        seed: int = 0,
        long: bool = False,
    ) -> list[Request]:
        if not isinstance(long, bool):
            raise TypeError(f"long must be True or False, but is {long!r:.60}")
        words = TEMPLATES["describe" if long else "caption"]
        check_choice("language", language, words)
        return self._tell(paired(image, words[language], "prompt"), temperature, seed)

    def _ask(
        self, image: Picture | Sequence[Picture], question: str | Sequence[str], temperature: float = 0.0, seed: int = 0
    ) -> list[Request]:
        pairs = paired(image, question, "question")
        return self._tell([(picture, worded("answer", text)) for picture, text in pairs], temperature, seed)

    def _tell(self, pairs: list[tuple[Picture, str]], temperature: float, seed: int) -> list[Request]:
        sampling, seed = SamplingConfig(temperature=temperature), check_seed(seed)
        return [self.requests.text(words, self._image(picture), sampling, seed) for picture, words in pairs]

    def _image(self, picture: Picture) -> Image:
        """One by one: the same alone as in a list."""
        return Image(self.image_tokenizer.encode(picture, max_pixels=self.max_pixels))

    def _write(
        self,
        ids: list[int],
        document: Document,
        temperature: float = 1.0,
        top_p: float = 0.95,
        seed: int = 0,
        guidance: float = 1.0,
        text_guidance: float = 1.0,
    ) -> Iterator[tuple[int, int]]:
        """Fill the empty list `ids` with the completed document's; (number of the picture or text, id) of all that is
        new."""
        check_document(document)
        check_seed(seed)
        sampling, guide = SamplingConfig(temperature=temperature, top_p=top_p), ClassifierFree(guidance, text_guidance)
        if has_mask(document) and not guide.off:
            raise ValueError("guidance counts where a document is written on: this one has masks, fill them without")
        return self._written(ids, document, guide, sampling, seed)

    def _written(
        self, ids: list[int], document: Document, guide: ClassifierFree, sampling: SamplingConfig, seed: int
    ) -> Iterator[tuple[int, int]]:
        """The work of _write, which has checked what it was given."""
        items, number = list(document), 0
        for i, item in enumerate(items):
            if isinstance(item, Image) and item.holes:
                before = Document(tuple(one for one in items[: i + 1] if not isinstance(one, Mask)))
                codes: list[int] = []
                for _, id in self._stream([self.requests.hole(before, guide.image, sampling, seed)]):
                    codes.append(id)
                    yield number, id
                items[i] = Image(self._grid(codes))
                number += 1
        whole = Document(tuple(items))
        ids += self.requests.ids(whole, prompt_ids)
        if masks := sum(isinstance(item, Mask) for item in document):
            yield from self._fill(ids, number, masks, sampling, seed)
        else:
            yield from self._go_on(ids, number, self.requests.more(whole, guide, sampling, self.context, seed))

    def _fill(
        self, ids: list[int], number: int, masks: int, sampling: SamplingConfig, seed: int
    ) -> Iterator[tuple[int, int]]:
        """Text for each mask, to be appended to the prompt `ids`."""
        room = max(1, (self.context - len(ids) + 1) // masks - 1)  # for each span, beside its <infill:k>
        for k in range(masks):
            ids += [self.vocab.infill(k)] if k else []
            for _, id in self._stream([Request(list(ids), "text", room, sampling, seed=check_seed(seed))]):
                ids.append(id)
                yield number + k, id

    def _go_on(self, ids: list[int], number: int, request: Request) -> Iterator[tuple[int, int]]:
        """More text and pictures, to be appended to `ids`; each run of text and each picture has its number."""
        number, kind = number - 1, None
        for _, id in self._stream([request]):
            ids.append(id)
            now = "text" if self.vocab.is_text(id) else "picture" if self.vocab.is_code(id) else None
            number += now not in (None, kind)
            kind = now
            yield number, id

    # From ids to texts and pictures.

    def _run(self, requests: list[Request]) -> list[list[int]]:
        """The new ids of each request, in batches of bounded size."""
        batches = (requests[i : i + MAX_PICTURES] for i in range(0, len(requests), MAX_PICTURES))
        return [ids for batch in batches for ids in engine.generate(self.model, self.vocab, batch, self.grid)]

    def _codes(self, requests: list[Request]) -> list[Tensor]:
        """The codes, [h, w], of the picture that each request drew."""
        return [self._grid(ids) for ids in self._run(requests)]

    def _grid(self, ids: list[int]) -> Tensor:  # -> [h, w]
        """The codes among the ids of a picture."""
        return torch.tensor([self.vocab.id_to_code(id) for id in ids if self.vocab.is_code(id)]).view(self.grid)

    @torch.inference_mode()
    def _best(self, words: str, codes: list[Tensor]) -> Tensor:
        """The codes that fit the words best; the first of equals: by how likely the model itself finds the words as
        their caption, and by its scorer where it has one, in standard deviations each."""
        fit = standard(self._caption_log_probs(words, codes))
        if self.scorer:
            fit += standard(self.scorer.score([self.text_tokenizer.encode(words)], torch.stack(codes)).cpu())
        return codes[int(fit.argmax())]

    def _caption_log_probs(self, words: str, codes: list[Tensor]) -> Tensor:  # -> [N]
        """Log-probability of the words as the caption of each picture."""
        asked = Text(TEMPLATES["caption"][language_of(words)])
        said = [*self.vocab.text_to_ids(self.text_tokenizer.encode(words)[:MAX_TEXT]), self.vocab.eos]
        rows = [self.requests.ids(Document((asked, Mask(), Image(grid))), prompt_ids) + said for grid in codes]
        ids = torch.tensor(rows, device=self.model.device)  # [N, T]
        logits = self.model(input_ids=ids).logits[:, -len(said) - 1 : -1].float()  # [N, words, V]
        return logits.log_softmax(-1).gather(2, ids[:, -len(said) :, None]).sum((1, 2)).cpu()

    def _texts(self, requests: list[Request]) -> list[str]:
        return [self._text(ids).strip() for ids in self._run(requests)]

    def _text(self, ids: list[int]) -> str:
        return self.text_tokenizer.decode(self.vocab.ids_to_text(ids))

    def _show(self, number: int, codes: Tensor) -> PIL_Image.Image:
        return self._picture(codes)

    def _picture(self, codes: Tensor) -> PIL_Image.Image:
        return cast(PIL_Image.Image, self.image_tokenizer.decode(codes))

    def _stream(self, requests: list[Request]) -> Iterator[tuple[int, int]]:
        return engine.stream(self.model, self.vocab, requests, self.grid)

    def _pieces(
        self, pairs: Iterator[tuple[int, int]], show: Callable[[int, Tensor], PIL_Image.Image]
    ) -> Iterator[Piece]:
        """Of ids with the numbers of what they belong to; what a picture lacks is white."""
        white = self.image_tokenizer.encode(PIL_Image.new("RGB", (1, 1), "white"))  # [h, w]
        blank = self.vocab.code_to_id(white.flatten().tolist())

        def picture(number: int, ids: list[int]) -> PIL_Image.Image:
            return show(number, self._grid(ids + blank[len(ids) :]))

        return pieces(pairs, self.vocab, self.grid[1], self._text, picture)
