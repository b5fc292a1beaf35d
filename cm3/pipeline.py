"""class CM3: a model, its text tokenizer and its image tokenizer as one thing to use.

    from cm3 import CM3
    model = CM3.from_pretrained("emoji")
    pictures = model.generate("a red apple", n=4, seed=7)
    model.caption(pictures[0]), model.answer(pictures[0], "What is this?")
    model.edit(pictures[0], "make it blue"), model.infill(pictures[0], mask)

Each task becomes a job (tasks/jobs.py): requests to the engine, and what makes pictures of what it gives.
Letters in shapes: T tokens, h x w codes of a picture.
"""

# Bodies behind overloads have no types of their own, and torch and transformers have some only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack, overload

import torch
from PIL import Image as PIL_Image

from cm3.checks import bound, check_text, check_whole, is_many, named
from cm3.engine.options import (
    ANSWER,
    CAPTION,
    COMPLETE,
    DEFAULTS,
    EDIT,
    GENERATE,
    INFILL,
    OPTIONS,
    Decoding,
    GenerateOptions,
    Schedule,
    TellOptions,
)
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
from cm3.hf.remote_code import carry
from cm3.model.scorer import Scorer
from cm3.tasks.jobs import Job
from cm3.tasks.known_words import KnownWords
from cm3.tasks.prompts import History
from cm3.tasks.runner import Runner, Score
from cm3.tasks.streaming import Piece
from cm3.tokens.document import Document, check_document
from cm3.tokens.encoding import from_ids, to_ids
from cm3.tokens.tokenizer_json import load_text, save_flat
from cm3.tokens.vocab import Vocab
from tokenizer_image.pixels import MAX_PIXELS, Picture


def arguments(task: str, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A task's arguments with those that are options in one, "options", the last. Errors: TypeError for arguments that
    the task does not take."""
    inputs = bound(getattr(CM3, task), args, kwargs)
    chosen = {name: inputs.pop(name) for name in OPTIONS & inputs.keys()}
    return {**inputs, "options": replace(DEFAULTS[task], **chosen)}


class CM3(Runner):
    """Draws, edits, fills in, captions, answers, completes and scores. Errors: ValueError for what is given and cannot
    be done, TypeError for what is of a wrong type or an argument that is not known.

    Where a list or a tuple of prompts or pictures may be given, it gives a list of as many, and an empty one an empty
    one.

    Wherever pictures are drawn: temperature (0 = the likeliest), top_p and top_k (0 = all) choose among the codes, and
    the same seed, from 0 to 2^63 - 1, gives the same picture, whatever else is in the batch. A guidance of 1 is off,
    more holds closer to the condition (CM3leon 3.1).
    """

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
        """An embedded model's name, a model folder, or a hub id (cm3/hf/model_folder.py).

        device: "auto" takes a GPU if there is one. image_tokenizer: an embedded one's name or a folder, for a model
        that brings none. max_pixels: the most that a picture may have (tokenizer_image/pixels.py). compile:
        the decoding step, for more speed where much is drawn (cm3/engine/engine.py). options go to transformers (dtype,
        attn_implementation ...); dtype=torch.bfloat16 halves the memory, and is faster where the device has it."""
        device, folder = device_of(device), find_model(name)
        check_files(folder)
        model = load_transformer(folder, options)
        text = load_text(folder, Vocab.from_config(model.config))
        image = load_image_tokenizer(folder, model.config, image_tokenizer)
        scorer = Scorer.from_pretrained(folder / "scorer") if (folder / "scorer").is_dir() else None
        return cls(model, text, image, scorer, max_pixels, compile, KnownWords.load(folder)).to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder that needs nothing outside it."""
        for what, part in (("the model", self.model), ("the image tokenizer", self.image_tokenizer.model)):
            check_finite(part, what)
        with write_folder(Path(folder)) as fresh, no_bar():
            self.model.save_pretrained(fresh)
            save_flat(self.text_tokenizer, self.vocab, self.context, fresh)
            self.image_tokenizer.save_pretrained(fresh / "image_tokenizer")
            if self.scorer:
                self.scorer.save_pretrained(fresh / "scorer")
            self.known_words.save(fresh)
            carry(fresh, self.image_tokenizer.size[0])
            write_checksums(fresh)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
        """Write what save_pretrained writes to a repository of the Hugging Face hub, which is made where there is none;
        from_pretrained(repo_id) loads it. Returns its address. private, token: as huggingface_hub has them."""
        with TemporaryDirectory() as place:
            self.save_pretrained(Path(place) / "model")
            return upload(Path(place) / "model", repo_id, private, token)

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
        **options: Unpack[GenerateOptions],
    ) -> list[PIL_Image.Image]: ...
    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...],
        n: int = ...,
        guidance: float = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        seed: int = ...,
        **options: Unpack[GenerateOptions],
    ) -> list[list[PIL_Image.Image]]: ...
    @named
    def generate(
        self,
        prompt,
        n=GENERATE.n,
        guidance=GENERATE.guidance,
        temperature=GENERATE.temperature,
        top_p=GENERATE.top_p,
        top_k=GENERATE.top_k,
        seed=GENERATE.seed,
        *,
        best_of=GENERATE.best_of,
        decoding: Decoding = GENERATE.decoding,
        contrast=GENERATE.contrast,
        guidance_schedule: Schedule = GENERATE.guidance_schedule,
        normalise=GENERATE.normalise,
        boxes=None,
        structure=None,
        kind="edges",
        negative_prompt=None,
        references=(),
        grid=None,
    ):
        """Draw n pictures of what the prompt says; a list of prompts gives a list of such lists. Picture i of seed s
        is picture 0 of seed s + i. More options: see cm3.engine.options.GenerateOptions."""
        job = self.job(
            "generate",
            *(prompt, n, guidance, temperature, top_p, top_k, seed),
            best_of=best_of,
            decoding=decoding,
            contrast=contrast,
            guidance_schedule=guidance_schedule,
            normalise=normalise,
            boxes=boxes,
            structure=structure,
            kind=kind,
            negative_prompt=negative_prompt,
            references=references,
            grid=grid,
        )
        pictures = self.pictures(job)
        return [pictures[i : i + n] for i in range(0, len(pictures), n)] if is_many(prompt) else pictures

    def infill(
        self,
        image: Picture,
        mask: Picture,
        prompt: str | None = None,
        n: int = INFILL.n,
        guidance: float = INFILL.guidance,
        temperature: float = INFILL.temperature,
        top_p: float = INFILL.top_p,
        top_k: int = INFILL.top_k,
        seed: int = INFILL.seed,
        normalise: bool = INFILL.normalise,
    ) -> list[PIL_Image.Image]:
        """Redraw the picture where the mask is white, n times; the prompt says what it all shows, and None leaves that
        to the picture. The result has the picture's size, upright; RGB, or RGBA where the picture has transparency.
        Codes that the mask does not touch stay as they are, and so does every pixel, with its transparency, outside the
        cells of the codes that it touches; what is redrawn is opaque. guidance: how much the prompt counts."""
        options = (n, guidance, temperature, top_p, top_k, seed, normalise)
        return self.pictures(self.job("infill", image, mask, prompt, *options))

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
        keep: float = ...,
        normalise: bool = ...,
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
        keep: float = ...,
        normalise: bool = ...,
    ) -> list[PIL_Image.Image]: ...
    def edit(
        self,
        image,
        instruction,
        image_guidance=EDIT.image_guidance,
        text_guidance=EDIT.text_guidance,
        temperature=EDIT.temperature,
        top_p=EDIT.top_p,
        top_k=EDIT.top_k,
        seed=EDIT.seed,
        keep=EDIT.keep,
        normalise=EDIT.normalise,
    ):
        """The picture as the instruction changes it, with size and transparency as infill gives them. The model sees
        the largest square in its middle: what lies outside stays as it is, and so do the pixels where its codes stay,
        and those around them. A list of pictures gives a list, from one instruction for all or a list of as many.
        image_guidance: how much the picture counts; text_guidance: how much the instruction does; keep: by how many
        nats what stands in a place is likelier to stay."""
        options = (image_guidance, text_guidance, temperature, top_p, top_k, seed, keep, normalise)
        pictures = self.pictures(self.job("edit", image, instruction, *options))
        return pictures if is_many(image) else pictures[0]

    @overload
    def caption(self, image: Picture, language: str = ..., **options: Unpack[TellOptions]) -> str: ...
    @overload
    def caption(
        self, image: Iterator[Picture], language: str = ..., **options: Unpack[TellOptions]
    ) -> Iterator[str]: ...
    @overload
    def caption(self, image: Sequence[Picture], language: str = ..., **options: Unpack[TellOptions]) -> list[str]: ...
    def caption(self, image, language="en", temperature=CAPTION.temperature, seed=CAPTION.seed, long=False, batch=32):
        """What the picture shows, in "en" or "ar"; long: and where, and on what. A list of pictures gives a list of
        str; an iterator or a generator of them gives an iterator, which takes `batch` of them at a time. temperature
        0 = greedy. For folders of files see cm3.captioning.run."""
        if isinstance(image, Iterator) and not hasattr(image, "read"):  # an open file is one picture
            check_whole("batch", batch)
            if batch < 1:
                raise ValueError(f"batch must be at least 1, but is {batch}")
            return self._captions(image, batch, language, temperature, seed, long)
        texts = self.texts(self.job("caption", image, language, temperature, seed, long).requests)
        return texts if is_many(image) else texts[0]

    def _captions(self, pictures: Iterator[Picture], batch: int, *options: Any) -> Iterator[str]:
        while some := list(islice(pictures, batch)):
            yield from self.texts(self.job("caption", some, *options).requests)

    @overload
    def answer(
        self, image: Picture, question: str, temperature: float = ..., seed: int = ..., history: History = ...
    ) -> str: ...
    @overload
    def answer(
        self, image: Sequence[Picture], question: str | Sequence[str], temperature: float = ..., seed: int = ...
    ) -> list[str]: ...
    def answer(self, image, question, temperature=ANSWER.temperature, seed=ANSWER.seed, history=()):
        """The answer to a question about the picture. A list of pictures gives a list of str, from one question for
        all or a list of as many. history: what was asked about the one picture before, with the answers, oldest first;
        the last ones are read (cm3/tasks/prompts.py)."""
        texts = self.texts(self.job("answer", image, question, temperature, seed, history).requests)
        return texts if is_many(image) else texts[0]

    def complete(
        self,
        document: Document,
        temperature: float = COMPLETE.temperature,
        top_p: float = COMPLETE.top_p,
        seed: int = COMPLETE.seed,
        guidance: float = COMPLETE.guidance,
        text_guidance: float = COMPLETE.text_guidance,
    ) -> Document:
        """A finished document: holes in its pictures drawn, then its masks filled with text or, if it has none,
        written on with text and pictures until the model ends it. guidance, text_guidance: how much its text counts
        for pictures that are drawn, and for text that is written on."""
        asked = arguments("complete", (document, temperature, top_p, seed, guidance, text_guidance), {})
        ids: list[int] = []
        deque(self.completion.write(ids, **asked), maxlen=0)
        return from_ids(ids, self.vocab, self.text_tokenizer, self.grid)

    def normal_prompt(self, prompt: str) -> str:
        """What the model reads where this prompt is given (GenerationOptions.normalise)."""
        check_text("the prompt", prompt)
        return self.known_words.normal(prompt)

    def unknown_words(self, prompt: str, normalise: bool = True) -> list[str]:
        """The words of a prompt that the model never read while it was trained: what they name it cannot draw. None
        where the model's folder does not say what it read (cm3/tasks/known_words.py). normalise: as the prompt is
        drawn."""
        check_text("the prompt", prompt)
        return self.known_words.unknown(self.normal_prompt(prompt) if normalise else prompt)

    def score(self, document: Document) -> Score:
        """How likely the model finds each token of a finished document."""
        check_document(document)
        return self.score_ids(self.prompts.ids(document, to_ids))

    def stream(self, task: str, *args: Any, **kwargs: Any) -> Generator[Piece]:
        """ "generate", "infill", "edit", "caption", "answer" or "complete" with its own arguments, piece by piece: text
        as it is written, a picture after each row of its codes with the rest still blank. The pieces of "complete" are
        numbered as the pictures and texts that it writes, holes first. Where `best_of` candidates of a picture are
        drawn, the first is shown until all are there, and then the best."""
        check_text("the task to stream", task)
        if task not in DEFAULTS:
            raise ValueError(f"cannot stream {task!r}: choose one of {', '.join(DEFAULTS)}")
        if task == "complete":
            new = self.completion.write([], **arguments(task, args, kwargs))
            return self.pieces(new, lambda _, codes: self.processor.picture(codes))
        return self.streamed(self.job(task, *args, **kwargs))

    def job(self, task: str, *args: Any, **kwargs: Any) -> Job:
        """What "generate", "infill", "edit", "caption" or "answer" asks of the engine for these arguments."""
        return getattr(self.jobs, task)(**arguments(task, args, kwargs))
