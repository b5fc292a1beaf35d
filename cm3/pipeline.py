"""class CM3: a model with its text tokenizer and its image tokenizer.

    from cm3 import CM3
    model = CM3.from_pretrained("emoji")
    images = model.generate("a red apple", n=4, seed=7)
    model.caption(images[0]), model.answer(images[0], "What is this?")
    model.edit(images[0], "make it blue"), model.infill(images[0], mask)

Each task is a job (tasks/job.py): `model.run(model.jobs.caption(image))` is `model.caption(image)`, and
`model.stream(model.jobs.caption(image))` gives its pieces as they come.

Letters in shapes: T tokens, h x w codes of an image.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar, cast, overload

import torch
from PIL import Image as PIL_Image
from torch import Tensor

from cm3.checks import check_text
from cm3.engine.engine import Engine
from cm3.engine.options import (
    AnswerOptions,
    CaptionOptions,
    CompleteOptions,
    EditOptions,
    GenerateOptions,
    InfillOptions,
)
from cm3.engine.request import Request
from cm3.hf.model_folder import (
    check_files,
    check_finite,
    device_of,
    find_model,
    load_image_tokenizer,
    load_transformer,
    no_bar,
    upload,
    write_checksums,
    write_folder,
)
from cm3.hf.remote_code import add_code
from cm3.keywords import keywords
from cm3.model.scorer import Scorer
from cm3.model.transformer import CM3ForCausalLM
from cm3.tasks import confidence, reranking
from cm3.tasks.confidence import Calibration, Rater
from cm3.tasks.images import Processor
from cm3.tasks.job import Job, Piece
from cm3.tasks.jobs import Jobs, Texts
from cm3.tasks.known_words import KnownWords
from cm3.tasks.prompts import Prompts
from cm3.tasks.streaming import pieces
from cm3.tokens.document import Document, check_document
from cm3.tokens.encoding import to_ids
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.tokenizer_json import load_text, save_flat
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from tokenizer_image.pixels import MAX_PIXELS, ImageLike

R = TypeVar("R")
Ids = Generator[tuple[int, int]]  # (number of the request, new id) as they come


class Score(NamedTuple):
    """How likely a model finds a document.

    Attributes:
        ids: [T - 1], the document's ids after its opening <eos>.
        log_probs: [T - 1], the natural logarithm of each id's probability.
    """

    ids: Tensor
    log_probs: Tensor


class CM3:
    """Generates, edits, inpaints, captions, answers, completes and scores.

    A method that takes an image or a prompt takes a list or a tuple of them too, where it says so, and gives a list of
    as many results. The same seed gives the same image or text, whatever else is in the batch.

    Args:
        model: the language model.
        text_tokenizer: of its text tokens.
        image_tokenizer: of its image tokens.
        scorer: rates candidates beside the model itself.
        max_pixels: the most pixels that an image may have.
        compile: compile the decoding step (cm3/engine/engine.py).
        known_words: how prompts are normalised.
        calibration: how probable it is that a text is right; None for texts that are not rated.

    Raises:
        ValueError: parts that do not belong together; in every method, arguments that cannot be fulfilled.
        TypeError: in every method, arguments of a wrong type, or unknown ones.
    """

    def __init__(
        self,
        model: CM3ForCausalLM,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        scorer: Scorer | None = None,
        max_pixels: int = MAX_PIXELS,
        compile: bool = False,
        known_words: KnownWords | None = None,
        calibration: Calibration | None = None,
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
        self.known_words = known_words or KnownWords()
        self.calibration = calibration
        self.vocab = Vocab.from_config(config)
        self.grid: tuple[int, int] = image_tokenizer.grid
        self.context: int = config.max_position_embeddings
        self.processor = Processor(self.vocab, text_tokenizer, image_tokenizer, max_pixels)
        self.prompts = Prompts(self.vocab, text_tokenizer, self.grid, self.context)
        rater = Rater(self.mean_log_prob, calibration)
        self.jobs = Jobs(self.processor, self.prompts, self.known_words, self.best, rater)
        self.engine = Engine(self.model, self.vocab, self.grid, compile=compile)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "emoji",
        device: str | torch.device = "auto",
        *,
        image_tokenizer: str | Path | None = None,
        max_pixels: int = MAX_PIXELS,
        compile: bool = False,
        **options: Any,
    ) -> "CM3":
        """Load a model.

        Args:
            name: an embedded model's name, a model folder, or a hub id (cm3/hf/model_folder.py).
            device: "auto" takes a GPU if there is one.
            image_tokenizer: name or folder of an image tokenizer, for a model without one.
            max_pixels: the most pixels that an image may have (tokenizer_image/pixels.py).
            compile: compile the decoding step, which is faster for many images (cm3/engine/engine.py).
            options: for transformers (dtype, attn_implementation ...). dtype=torch.bfloat16 halves the memory, and is
                faster where the device supports it.
        """
        device, folder = device_of(device), find_model(name)
        check_files(folder)
        model = load_transformer(folder, options)
        text = load_text(folder, Vocab.from_config(model.config))
        image = load_image_tokenizer(folder, model.config, image_tokenizer)
        scorer = Scorer.from_pretrained(folder / "scorer") if (folder / "scorer").is_dir() else None
        words, calibration = KnownWords.load(folder), Calibration.load(folder)
        return cls(model, text, image, scorer, max_pixels, compile, words, calibration).to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder that needs nothing outside it."""
        for what, part in (("the model", self.model), ("the image tokenizer", self.image_tokenizer.model)):
            check_finite(part, what)
        with write_folder(Path(folder)) as fresh, no_bar():
            self.model.save_pretrained(fresh)  # pyright: ignore[reportUnknownMemberType]
            save_flat(self.text_tokenizer, self.vocab, self.context, fresh)
            self.image_tokenizer.save_pretrained(fresh / "image_tokenizer")
            if self.scorer:
                self.scorer.save_pretrained(fresh / "scorer")
            self.known_words.save(fresh)
            if self.calibration:
                self.calibration.save(fresh)
            add_code(fresh, self.image_tokenizer.size[0])
            write_checksums(fresh)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
        """Write what save_pretrained writes to a repository of the Hugging Face hub, and create it where it is missing.

        Args:
            repo_id: the repository; from_pretrained(repo_id) loads it.
            private: as in huggingface_hub.
            token: as in huggingface_hub.

        Returns:
            The repository's address.
        """
        with TemporaryDirectory() as place:
            self.save_pretrained(Path(place) / "model")
            return upload(Path(place) / "model", repo_id, private, token)

    def to(self, device: str | torch.device) -> "CM3":
        """Move the model to a device, named as for from_pretrained."""
        device = device_of(device)
        self.model.to(device)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
        self.image_tokenizer.to(device)
        if self.scorer:
            self.scorer.to(device)
        return self

    # Tasks.

    @overload
    @keywords(GenerateOptions)
    def generate(self, prompt: str, options: GenerateOptions) -> list[PIL_Image.Image]: ...
    @overload
    @keywords(GenerateOptions)
    def generate(self, prompt: Texts, options: GenerateOptions) -> list[list[PIL_Image.Image]]: ...
    @keywords(GenerateOptions)
    def generate(self, prompt: Any, options: GenerateOptions) -> Any:
        """Draw n images of a prompt. A list of prompts gives a list of such lists."""
        return self.run(cast(Job[Any], self.jobs.generate(prompt, options)))

    @overload
    @keywords(InfillOptions)
    def infill(self, image: ImageLike, mask: ImageLike, options: InfillOptions) -> list[PIL_Image.Image]: ...
    @overload
    @keywords(InfillOptions)
    def infill(
        self, image: ImageLike, mask: ImageLike, prompt: str | None, options: InfillOptions
    ) -> list[PIL_Image.Image]: ...
    @keywords(InfillOptions)
    def infill(self, image: Any, mask: Any, prompt: Any = None, options: InfillOptions = InfillOptions()) -> Any:
        """Redraw an image n times where the mask is white.

        The prompt says what the whole image shows; None leaves that to the image. The result has the image's size, with
        its orientation applied, and is RGB, or RGBA where the image has transparency. Codes that the mask does not
        touch stay as they are, and so do all pixels, with their transparency, outside the positions of the touched
        codes. What is redrawn is opaque.
        """
        return self.run(cast(Job[Any], self.jobs.infill(image, mask, prompt, options)))

    @overload
    @keywords(EditOptions)
    def edit(self, image: ImageLike, instruction: str, options: EditOptions) -> PIL_Image.Image: ...
    @overload
    @keywords(EditOptions)
    def edit(
        self, image: Sequence[ImageLike], instruction: str | Sequence[str], options: EditOptions
    ) -> list[PIL_Image.Image]: ...
    @keywords(EditOptions)
    def edit(self, image: Any, instruction: Any, options: EditOptions) -> Any:
        """Change an image as the instruction says.

        The model sees the largest square in the image's middle. What lies outside stays as it is, and so do the pixels
        where the codes stay, except beside changed ones. Size and transparency are as for infill. A list of images
        gives a list, from one instruction for all or a list of as many.
        """
        return self.run(cast(Job[Any], self.jobs.edit(image, instruction, options)))

    @overload
    @keywords(CaptionOptions)
    def caption(self, image: ImageLike, options: CaptionOptions) -> str: ...
    @overload
    @keywords(CaptionOptions)
    def caption(self, image: Iterator[ImageLike], options: CaptionOptions) -> Iterator[str]: ...
    @overload
    @keywords(CaptionOptions)
    def caption(self, image: Sequence[ImageLike], options: CaptionOptions) -> list[str]: ...
    @keywords(CaptionOptions)
    def caption(self, image: Any, options: CaptionOptions) -> Any:
        """Describe an image. A list of images gives a list; an iterator gives an iterator, which takes `batch` images
        at a time. For folders of files see cm3.captioning.run."""
        if is_iterator(image):
            return self._captions(image, options)
        return self.run(cast(Job[Any], self.jobs.caption(image, options)))

    def _captions(self, images: Iterator[ImageLike], options: CaptionOptions) -> Iterator[str]:
        while some := list(islice(images, options.batch)):
            yield from self.run(self.jobs.caption(some, options))

    @overload
    @keywords(AnswerOptions)
    def answer(self, image: ImageLike, question: str, options: AnswerOptions) -> str: ...
    @overload
    @keywords(AnswerOptions)
    def answer(
        self, image: Sequence[ImageLike], question: str | Sequence[str], options: AnswerOptions
    ) -> list[str]: ...
    @keywords(AnswerOptions)
    def answer(self, image: Any, question: Any, options: AnswerOptions) -> Any:
        """Answer a question about an image. A list of images gives a list, from one question for all or a list of as
        many."""
        return self.run(cast(Job[Any], self.jobs.answer(image, question, options)))

    @keywords(CompleteOptions)
    def complete(self, document: Document, options: CompleteOptions) -> Document:
        """Finish a document: draw the holes in its images, then fill its masks with text. A document without masks is
        continued with text and images until the model ends it."""
        return self.run(self.jobs.complete(document, options))

    # Jobs and what is below them.

    def run(self, job: Job[R], watch: Callable[[Ids], Ids] | None = None) -> R:
        """Run a job to its end.

        Args:
            job: as `self.jobs` makes it.
            watch: wraps the stream of new ids; whatever it raises ends the work.
        """
        while job.batch is not None:
            job.give(self.run_requests(job.requests, watch))
        return job.result

    def stream(self, job: Job[Any]) -> Generator[Piece]:
        """Run a job, and yield its pieces as they come: text as it is written, and an image after each row of its
        codes, with the rest still white. Where an image has several candidates, the first is shown while all are drawn,
        and then the best. Closing the generator ends the work."""
        while job.batch is not None:
            new: list[list[int]] = [[] for _ in job.requests]
            with closing(self.engine.stream(job.requests)) as ids:
                yield from pieces(job.batch, noted(ids, new), self.processor)
            job.give(new)

    def run_requests(self, requests: Sequence[Request], watch: Callable[[Ids], Ids] | None = None) -> list[list[int]]:
        """The new ids of each request. Requests with prompts of similar length run side by side. watch: see run."""
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        new: list[list[int]] = [[] for _ in requests]
        ids = self.engine.stream([requests[i] for i in order])
        for place, id in watch(ids) if watch else ids:
            new[order[place]].append(id)
        return new

    def draw_codes(self, requests: Sequence[Request]) -> list[Tensor]:
        """The codes, [h, w], of the image that each request draws."""
        return self.processor.drawn(requests, self.run_requests(requests))

    def texts(self, requests: Sequence[Request]) -> list[str]:
        """The text that each request writes."""
        return [self.processor.text(ids).strip() for ids in self.run_requests(requests)]

    def best(self, words: str, codes: Sequence[Tensor]) -> int:
        """The index of the image, given as codes [h, w], that fits the words best (tasks/reranking.py)."""
        return reranking.best(self.model, self.prompts, self.scorer, words, codes)

    def caption_log_probs(self, words: str, codes: Sequence[Tensor]) -> Tensor:  # -> [N]
        """Log-probability of the words as the caption of each image, given as codes [h, w]."""
        return reranking.caption_log_probs(self.model, self.prompts, words, codes)

    def mean_log_prob(self, request: Request, new: Sequence[int]) -> float:
        """The mean log-probability, in nats, of a request's new ids (tasks/confidence.py)."""
        return confidence.mean_log_prob(self.model, request, new)

    def normal_prompt(self, prompt: str) -> str:
        """The prompt as the model reads it with the option `normalise`."""
        check_text("the prompt", prompt)
        return self.known_words.normal(prompt)

    def unknown_words(self, prompt: str, normalise: bool = True) -> list[str]:
        """The words of a prompt that the training data lacks, so that the model cannot draw them. None where the model
        has no list of words (cm3/tasks/known_words.py). normalise: as in generate."""
        check_text("the prompt", prompt)
        return self.known_words.unknown(self.normal_prompt(prompt) if normalise else prompt)

    def score(self, document: Document) -> Score:
        """How likely the model finds each token of a finished document."""
        check_document(document)
        return self.score_ids(self.prompts.ids(document, to_ids))

    @torch.inference_mode()
    def score_ids(self, document: Sequence[int]) -> Score:
        """How likely the model finds each id of a document after its opening <eos>.

        Raises:
            ValueError: the document has more ids than the model's context.
        """
        ids = torch.tensor(document)  # [T]
        if len(ids) > self.context:
            raise ValueError(f"a document of {len(ids)} tokens is too long: the model holds {self.context}")
        logits = self.model(input_ids=ids[None].to(self.model.device)).logits[0, :-1].float().cpu()  # [T - 1, V]
        log_probs = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        return Score(ids[1:], log_probs)


def is_iterator(value: Any) -> bool:
    """Whether a value gives several images one by one. An open file is one image."""
    return not hasattr(value, "read") and isinstance(value, Iterator)


def noted(ids: Iterable[tuple[int, int]], new: list[list[int]]) -> Iterator[tuple[int, int]]:
    """Pass ids on, and append each to the list of its request."""
    for number, id in ids:
        new[number].append(id)
        yield number, id
