"""class CM3: a model, its text tokenizer and its image tokenizer as one thing to use.

    from cm3 import CM3
    model = CM3.from_pretrained("emoji")
    pictures = model.generate("a red apple", n=4, seed=7)
    model.caption(pictures[0]), model.answer(pictures[0], "What is this?")

A model folder holds config.json, model.safetensors, tokenizer.json (text) and image_tokenizer/, or in its place the
field "image_tokenizer" of config.json naming one that tokenizer_image knows; checksums.json is checked if present.

Letters in shapes: T tokens, h x w codes of a picture.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from PIL import Image as PIL_Image
from safetensors import SafetensorError
from torch import Tensor

from cm3 import engine
from cm3.document import Document, Image, Mask, Text, draw_ids, from_ids, prompt_ids, to_ids, unconditional_ids
from cm3.engine import Request
from cm3.sampling import SamplingConfig
from cm3.text import TextTokenizer
from cm3.transformer import CM3ForCausalLM
from cm3.vocab import Vocab
from tokenizer_image import PRESETS, ImageTokenizer, VQConfig, count_parameters
from tokenizer_image.pixels import Picture

EMBEDDED = Path(__file__).parent / "models"
CHECKSUMS = "checksums.json"
MAX_PICTURES = 64  # of one call of generate, and rows of one batch
MAX_SEED = 2**63
MAX_TEXT = 64  # tokens of a caption or an answer

# What the model was taught to write on from; a mask and the picture follow. Training reads them here.
PROMPTS = {
    "caption": {"en": "Caption: ", "ar": "الوصف: "},
    "answer": {"en": "Question: {question} Answer: ", "ar": "سؤال: {question} جواب: "},
}


def question_prompt(question: str) -> str:
    """The text before an answer; a question with an Arabic letter gets the Arabic form."""
    language = "ar" if re.search("[\u0600-\u06ff]", question) else "en"
    return PROMPTS["answer"][language].format(question=question.strip())


def check_seed(seed: int) -> int:
    if not 0 <= seed < MAX_SEED:
        raise ValueError(f"seed is {seed}, but must be 0 to {MAX_SEED - 1}")
    return seed


def is_many(value: Any) -> bool:
    return isinstance(value, list | tuple)


def listed(value: Any) -> list[Any]:
    return list(value) if is_many(value) else [value]


class Score(NamedTuple):
    """ids: [T - 1], the document after its opening <eos>. log_probs: [T - 1], natural logarithm for each of them."""

    ids: Tensor
    log_probs: Tensor


class Piece(NamedTuple):
    """What stream yields. index: which picture or text of the call. content: more text, or the picture so far."""

    index: int
    content: str | PIL_Image.Image


class TokenizerPreset(NamedTuple):
    """A shape of image tokenizer that has a name; parameters: of the encoder, the decoder, and in all."""

    name: str
    config: VQConfig
    parameters: tuple[int, int, int]


def tokenizer_presets() -> list[TokenizerPreset]:
    """The shapes of image tokenizers that can be trained or imported."""
    return [TokenizerPreset(name, config, count_parameters(config)) for name, config in PRESETS.items()]


class CM3:
    """Draws, captions, answers, completes and scores. Errors: ValueError for every mistake of the caller's."""

    def __init__(self, model: CM3ForCausalLM, text_tokenizer: TextTokenizer, image_tokenizer: ImageTokenizer) -> None:
        config = model.config
        for what, has, wants in (
            ("the text tokenizer's ids", len(text_tokenizer), config.text_vocab_size),
            ("the image tokenizer's codes", image_tokenizer.num_codes, config.image_vocab_size),
        ):
            if has > wants:
                raise ValueError(f"{what} are {has}, but the model knows {wants}: they do not belong together")
        if image_tokenizer.grid != tuple(config.image_grid):
            raise ValueError(f"the image tokenizer's grid is {image_tokenizer.grid}, but the model's "
                             f"{tuple(config.image_grid)}: they do not belong together")
        self.model = model.eval()
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer = image_tokenizer
        self.vocab = Vocab.from_config(config)
        self.grid: tuple[int, int] = image_tokenizer.grid
        self.context: int = config.max_position_embeddings

    @classmethod
    def from_pretrained(cls, name: str | Path = "emoji", device: str = "auto", **options: Any) -> "CM3":
        """An embedded model's name, a model folder, or a hub id. device "auto" takes a GPU if there is one; options
        go to transformers (dtype, attn_implementation ...)."""
        folder = find_model(name)
        check_files(folder)
        model = load_transformer(folder, options)
        own = folder / "image_tokenizer"
        named = own if own.is_dir() else getattr(model.config, "image_tokenizer", own)
        image_tokenizer = ImageTokenizer.from_pretrained(named)
        mark = getattr(model.config, "image_tokenizer_fingerprint", None)
        if mark not in (None, image_tokenizer.fingerprint()):
            raise ValueError(f"the image tokenizer {str(named)!r} is not the one that {folder} was trained with: "
                             "it was changed or damaged; fetch the model again")
        pipeline = cls(model, TextTokenizer.load(folder), image_tokenizer)
        return pipeline.to("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else pipeline.to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder that needs nothing outside it."""
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.text_tokenizer.save(folder)
        self.image_tokenizer.save_pretrained(folder / "image_tokenizer")
        write_checksums(folder)

    def to(self, device: str) -> "CM3":
        self.model.to(device)  # pyright: ignore[reportArgumentType]
        self.image_tokenizer.to(device)
        return self

    @overload
    def generate(self, prompt: str, n: int = ..., guidance: float = ..., temperature: float = ..., top_p: float = ...,
                 top_k: int = ..., seed: int = ...) -> list[PIL_Image.Image]: ...  # fmt: skip
    @overload
    def generate(self, prompt: list[str], n: int = ..., guidance: float = ..., temperature: float = ...,
                 top_p: float = ..., top_k: int = ..., seed: int = ...) -> list[list[PIL_Image.Image]]: ...  # fmt: skip
    def generate(self, prompt, n=1, guidance=6.0, temperature=0.8, top_p=0.9, top_k=0, seed=0):  # fmt: skip
        """Draw n pictures of what the prompt says; a list of prompts gives a list of such lists. Picture i of seed s
        is picture 0 of seed s + i, whatever else is in the batch. guidance: how much the text counts (CM3leon 3.1);
        1 = no guidance. top_k 0 = all."""
        options = (n, guidance, temperature, top_p, top_k, seed)
        requests = [request for text in listed(prompt) for request in self._draw(text, *options)]
        pictures = [self._picture([id for id in ids if self.vocab.is_code(id)]) for ids in self._run(requests)]
        return [pictures[i : i + n] for i in range(0, len(pictures), n)] if is_many(prompt) else pictures

    @overload
    def caption(self, image: Picture, language: str = ..., temperature: float = ..., seed: int = ...) -> str: ...
    @overload
    def caption(self, image: Sequence[Picture], language: str = ..., temperature: float = ...,
                seed: int = ...) -> list[str]: ...  # fmt: skip
    def caption(self, image, language="en", temperature=0.0, seed=0):  # fmt: skip
        """What the picture shows, in "en" or "ar". A list of pictures gives a list of str. temperature 0 = greedy."""
        texts = self._texts(self._describe(image, language, temperature, seed))
        return texts if is_many(image) else texts[0]

    @overload
    def answer(self, image: Picture, question: str, temperature: float = ..., seed: int = ...) -> str: ...
    @overload
    def answer(self, image: Sequence[Picture], question: str | Sequence[str], temperature: float = ...,
               seed: int = ...) -> list[str]: ...  # fmt: skip
    def answer(self, image, question, temperature=0.0, seed=0):  # fmt: skip
        """The answer to a question about the picture. A list of pictures gives a list of str, from one question for
        all or a list of as many."""
        texts = self._texts(self._ask(image, question, temperature, seed))
        return texts if is_many(image) else texts[0]

    def complete(self, document: Document, temperature: float = 1.0, top_p: float = 0.95, seed: int = 0) -> Document:
        """A finished document: its masks filled with text or, if it has none, written on until the model ends it."""
        ids = self._ids(document, prompt_ids)
        sampling, seed = SamplingConfig(temperature=temperature, top_p=top_p), check_seed(seed)
        masks = sum(isinstance(item, Mask) for item in document)
        room = (self.context - len(ids) + 1) // max(masks, 1) - 1  # for each span, beside its <infill:k>
        for k in range(masks):
            ids += [self.vocab.infill(k)] if k else []
            ids += self._run([Request(ids, mode="text", max_new_tokens=max(room, 1), sampling=sampling, seed=seed)])[0]
        if not masks:
            ids += self._run([Request(ids, max_new_tokens=self.context, sampling=sampling, seed=seed)])[0]
        return from_ids(ids, self.vocab, self.text_tokenizer, self.grid)

    @torch.inference_mode()
    def score(self, document: Document) -> Score:
        """How likely the model finds each token of a finished document."""
        ids = torch.tensor(self._ids(document, to_ids))  # [T]
        if len(ids) > self.context:
            raise ValueError(f"a document of {len(ids)} tokens is too long: the model holds {self.context}")
        logits = self.model(input_ids=ids[None].to(self.model.device)).logits[0, :-1].float().cpu()  # [T - 1, V]
        log_probs = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        return Score(ids[1:], log_probs)

    def stream(self, task: str, *args: Any, **kwargs: Any) -> Iterator[Piece]:
        """"generate", "caption" or "answer" with its own arguments, piece by piece: text as it is written, a picture
        after each row of its codes with the rest still blank."""
        tasks = {"generate": self._draw, "caption": self._describe, "answer": self._ask}
        if task not in tasks:
            raise ValueError(f"cannot stream {task!r}: choose one of {', '.join(tasks)}")
        requests = tasks[task](*args, **kwargs)
        pieces = self._stream_pictures if task == "generate" else self._stream_texts
        return pieces(requests)

    def _draw(self, prompt: str, n: int = 1, guidance: float = 6.0, temperature: float = 0.8, top_p: float = 0.9,
              top_k: int = 0, seed: int = 0) -> list[Request]:  # fmt: skip
        if not prompt.strip():
            raise ValueError("the prompt is empty: say what to draw")
        if not 1 <= n <= MAX_PICTURES:
            raise ValueError(f"n is {n}, but 1 to {MAX_PICTURES} pictures can be drawn at once")
        sampling = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k)
        ids = draw_ids(Document((Text(prompt),)), self.vocab, self.text_tokenizer)
        uncond = unconditional_ids(self.vocab)
        return [
            Request(ids, uncond, "image", sampling=sampling, guidance=guidance, seed=check_seed(seed) + i)
            for i in range(n)
        ]

    def _describe(self, image: Picture | Sequence[Picture], language: str = "en", temperature: float = 0.0,
                  seed: int = 0) -> list[Request]:  # fmt: skip
        if language not in PROMPTS["caption"]:
            raise ValueError(f"language is {language!r}, but must be one of {', '.join(PROMPTS['caption'])}")
        images = listed(image)
        return self._infill([PROMPTS["caption"][language]] * len(images), images, temperature, seed)

    def _ask(self, image: Picture | Sequence[Picture], question: str | Sequence[str], temperature: float = 0.0,
             seed: int = 0) -> list[Request]:  # fmt: skip
        images = listed(image)
        questions: list[str] = listed(question) if is_many(question) else listed(question) * len(images)
        if len(questions) != len(images):
            raise ValueError(f"{len(images)} pictures and {len(questions)} questions: give one question, or as many")
        if not all(text.strip() for text in questions):
            raise ValueError("the question is empty: ask something about the picture")
        return self._infill([question_prompt(text) for text in questions], images, temperature, seed)

    def _infill(self, prompts: list[str], images: list[Picture], temperature: float, seed: int) -> list[Request]:
        """Write what a mask between each prompt and its picture stands for (CM3leon 4)."""
        if not images:
            raise ValueError("the list of pictures is empty: give at least one")
        sampling = SamplingConfig(temperature=temperature)
        codes = [self.image_tokenizer.encode(image) for image in images]  # one by one: the same alone as in a list
        documents = [Document((Text(text), Mask(), Image(grid))) for text, grid in zip(prompts, codes, strict=True)]
        ids = [self._ids(document, prompt_ids) for document in documents]
        return [Request(row, None, "text", MAX_TEXT, sampling, seed=check_seed(seed)) for row in ids]

    def _ids(self, document: Document, to: Callable[[Document, Vocab, TextTokenizer], list[int]]) -> list[int]:
        for item in document:
            if isinstance(item, Image) and item.grid != self.grid:
                raise ValueError(f"a picture of {item.grid} codes: the model's pictures have {self.grid}")
        return to(document, self.vocab, self.text_tokenizer)

    def _run(self, requests: list[Request]) -> list[list[int]]:
        """The new ids of each request, in batches of bounded size."""
        batches = (requests[i : i + MAX_PICTURES] for i in range(0, len(requests), MAX_PICTURES))
        return [ids for batch in batches for ids in engine.generate(self.model, self.vocab, batch, self.grid)]

    def _texts(self, requests: list[Request]) -> list[str]:
        return [self._text(ids).strip() for ids in self._run(requests)]

    def _text(self, ids: list[int]) -> str:
        return self.text_tokenizer.decode(self.vocab.ids_to_text(ids))

    def _picture(self, ids: list[int]) -> PIL_Image.Image:
        codes = torch.tensor(self.vocab.id_to_code(ids)).view(self.grid)
        return cast(PIL_Image.Image, self.image_tokenizer.decode(codes))

    def _stream_texts(self, requests: list[Request]) -> Iterator[Piece]:
        ids: list[list[int]] = [[] for _ in requests]
        said = [""] * len(requests)
        for row, id in engine.stream(self.model, self.vocab, requests, self.grid):
            ids[row].append(id)
            text = self._text(ids[row])
            if not text.endswith("\ufffd"):  # a character of several tokens is not yet whole
                yield Piece(row, text[len(said[row]) :])
                said[row] = text
        for row in range(len(requests)):
            if rest := self._text(ids[row])[len(said[row]) :]:
                yield Piece(row, rest)

    def _stream_pictures(self, requests: list[Request]) -> Iterator[Piece]:
        white = self.image_tokenizer.encode(PIL_Image.new("RGB", (1, 1), "white"))  # [h, w]
        blank = self.vocab.code_to_id(white.flatten().tolist())
        drawn: list[list[int]] = [[] for _ in requests]
        for row, id in engine.stream(self.model, self.vocab, requests, self.grid):
            if self.vocab.is_code(id):
                drawn[row].append(id)
                if len(drawn[row]) % self.grid[1] == 0:
                    yield Piece(row, self._picture(drawn[row] + blank[len(drawn[row]) :]))


def find_model(name: str | Path) -> Path:
    """The folder of an embedded model, of a local one, or of one fetched from the hub."""
    embedded = sorted(path.parent.name for path in EMBEDDED.glob("*/config.json"))
    if str(name) in embedded:
        return EMBEDDED / name
    if name and Path(name).is_dir():
        return Path(name)
    none = f"there is no model {str(name)!r}: it is neither embedded ({', '.join(embedded) or 'none is'}) nor a folder"
    if "/" not in str(name):
        raise ValueError(none)
    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, HFValidationError) as error:
        raise ValueError(f"{none}, and the hub does not give it ({error})") from error


def check_files(folder: Path) -> None:
    """Whether a model folder is whole and, where it has checksums, unchanged. Errors: ValueError naming the file."""
    path = folder / CHECKSUMS
    try:
        checksums: dict[str, str] = dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch the model again") from error
    for name in ("config.json", "tokenizer.json", *checksums):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no whole model folder: {name} is missing; fetch the model again")
    for name, digest in checksums.items():
        if sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} was changed or damaged: its checksum differs; fetch the model again")


def write_checksums(folder: Path) -> None:
    """Note the SHA-256 of every file that a model is loaded from."""
    files = sorted(path for suffix in ("json", "safetensors") for path in folder.rglob(f"*.{suffix}"))
    names = [path.relative_to(folder).as_posix() for path in files if path != folder / CHECKSUMS]
    (folder / CHECKSUMS).write_text(json.dumps({name: sha256(folder / name) for name in names}, indent=1) + "\n")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_transformer(folder: Path, options: dict[str, Any]) -> CM3ForCausalLM:
    """The weights of a model folder, none missing. Errors: ValueError."""
    try:
        loaded: Any = CM3ForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, RuntimeError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{folder}: the model cannot be loaded ({error}); fetch it again") from error
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(f"{folder}: the weights lack {missing}; fetch the model again")
    return model
