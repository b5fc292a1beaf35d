"""The model with its image tokenizer, like transformers' multimodal models: pixels in, text and images out.

    model = AutoModelForMultimodalLM.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(text="a red apple", generation_mode="image", return_tensors="pt")
    ids = model.generate(**inputs, generation_mode="image", do_sample=True)
    images = processor.post_process_multimodal_output(model.decode_image_tokens(ids), generation_mode="image")

It uses transformers' generate() with its options. The grammar is a LogitsProcessor. Conventions: models/janus and
models/chameleon of transformers. CM3 (pipeline.py) is faster, and has the tasks.

Shapes: B sequences, T tokens, V vocabulary, h x w codes of an image.
"""

from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.tensors import to_rows
from cm3.tokens.encoding import image_prompt_ids, last_codes, unconditional
from cm3.tokens.grammar import Grammar, Mode, allowed
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from tokenizer_image.checkpoint import make_readable

IMAGE_TOKENIZER = "image_tokenizer"  # folder inside a model folder
MODES: dict[str, Mode] = {"text": "text", "image": "image", "interleaved": "document"}
DEFAULT_NEW_TOKENS = 64


class GrammarLogitsProcessor(LogitsProcessor):
    """Allows only the ids that may come next (tokens/grammar.py), and <eos> after the end of a sequence.

    The first call must have the prompts. Later calls may have left-padded, multiplied and reordered sequences, as beam
    search does.

    Args:
        vocab: the vocabulary.
        mode: as for Grammar.
        codes: number of codes of an image.
        room: new ids at most.
    """

    def __init__(self, vocab: Vocab, mode: Mode, codes: int, room: int) -> None:
        self.vocab, self.codes, self.room = vocab, codes, room
        self.mode: Mode = mode
        self.prompt: int | None = None  # its length, padding included
        self.states: dict[tuple[int, ...], Grammar] = {}  # by the ids of each sequence of the last call

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # [B, T], [B, V] -> [B, V]
        self.prompt = input_ids.shape[1] if self.prompt is None else self.prompt
        rows = [tuple(row) for row in to_rows(input_ids)]
        states = {row: self.state(row) for row in dict.fromkeys(rows)}
        self.states = states
        legal = torch.zeros(scores.shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            if states[row].done:
                legal[i, self.vocab.ends[0]] = True
            else:
                legal[i, : len(self.vocab)] = allowed([states[row]])[0]
        return scores.masked_fill(~legal.to(scores.device), -torch.inf)

    def state(self, row: tuple[int, ...]) -> Grammar:
        """The grammar after all ids of a sequence."""
        assert self.prompt is not None
        before = self.states.get(row[:-1])
        if before is not None and len(row) > self.prompt:
            return followed(before.copy(), row[-1])
        start = next((i for i, id in enumerate(row) if id != self.vocab.pad), len(row))
        grammar = Grammar(self.vocab, row[start : self.prompt], self.mode, self.codes, self.room)
        for id in row[self.prompt :]:
            grammar = followed(grammar, id)
        return grammar


def followed(grammar: Grammar, id: int) -> Grammar:
    """Advance a grammar by an id. After the end, ids are padding."""
    if not grammar.done:
        grammar.advance(id)
    return grammar


class CM3ForConditionalGeneration(CM3ForCausalLM):
    """Ids and pixels to logits.

    Attributes:
        vqmodel: the image tokenizer's model, which from_pretrained loads; None for a model made otherwise.
    """

    input_modalities = ["image", "text"]
    output_modalities = ["image", "text"]

    def __init__(self, config: CM3Config) -> None:
        super().__init__(config)
        self.vqmodel: Any = None
        self.vocab = Vocab.from_config(config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers.

        Raises:
            ValueError: a folder without an image tokenizer.
        """
        loaded = cast(Any, super()).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        name = str(pretrained_model_name_or_path)
        folder = Path(name) if Path(name).is_dir() else hub_folder(name, kwargs)
        from cm3.hf.model_folder import (
            load_image_tokenizer,  # not at the top: importing it may import this module
        )

        model.vqmodel = load_image_tokenizer(folder, model.config).model.to(model.device)
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the language model, as CM3ForCausalLM loads it, and the image tokenizer in a folder inside."""
        vqmodel, self.vqmodel = self.vqmodel, None
        try:
            super().save_pretrained(save_directory, *args, **kwargs)  # pyright: ignore[reportUnknownMemberType]
        finally:
            self.vqmodel = vqmodel
        make_readable(*Path(save_directory).glob("model*.safetensors"))
        if vqmodel is not None:
            ImageTokenizer(vqmodel).save_pretrained(Path(save_directory) / IMAGE_TOKENIZER)

    @property
    def tokenizer(self) -> ImageTokenizer:
        """The image tokenizer.

        Raises:
            ValueError: there is none.
        """
        if self.vqmodel is None:
            raise ValueError("this model was made without an image tokenizer: use from_pretrained")
        return ImageTokenizer(self.vqmodel)

    def get_image_tokens(self, pixel_values: Tensor) -> Tensor:  # [B, 3, H, W] in [-1, 1] -> [B, h*w]
        """The ids of images' codes."""
        codes = self.tokenizer.encode_pixels(pixel_values.float())  # [B, h, w]
        return self.vocab.code_to_id(codes.flatten(1)).to(self.device)

    def decode_image_tokens(self, image_tokens: Tensor) -> Tensor:  # [B, T] -> [B, 3, H, W] in [-1, 1]
        """Decode the last image of each sequence. Other ids, such as the prompt's, are ignored.

        Raises:
            ValueError: a sequence without a complete image.
        """
        rows, columns = self.config.grid
        grids: list[list[int]] = []
        for row in to_rows(image_tokens):
            codes = last_codes(row, self.vocab)
            if len(codes) != rows * columns:
                raise ValueError(
                    f"an image has {rows * columns} codes, but the last one of a sequence has {len(codes)}"
                )
            grids.append(codes)
        return self.decode_codes(torch.tensor(grids).view(-1, rows, columns))

    @torch.no_grad()
    def decode_codes(self, codes: Tensor) -> Tensor:  # [B, h, w] -> [B, 3, H, W] in [-1, 1]
        """Decode codes to pixels."""
        return self.tokenizer.model.decode(codes.to(self.device))

    def with_images(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:  # [B, T], [N, 3, H, W] -> [B, T]
        """Replace <placeholder> by the images' codes.

        Raises:
            ValueError: their numbers differ.
        """
        is_placeholder = input_ids == self.vocab.placeholder
        if pixel_values is None:
            if is_placeholder.any():
                raise ValueError("the ids have placeholders for images, but there are no pixel_values")
            return input_ids
        codes = self.get_image_tokens(pixel_values).flatten()
        if len(codes) != int(is_placeholder.sum()):
            raise ValueError(
                f"the ids have placeholders for {int(is_placeholder.sum())} codes, but the images have {len(codes)}"
            )
        return input_ids.masked_scatter(is_placeholder, codes.to(input_ids.device))

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the rest by name
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        """As CM3ForCausalLM. The codes of pixel_values, [N, 3, H, W] in [-1, 1], replace <placeholder> in the ids."""
        if input_ids is not None:
            input_ids = self.with_images(input_ids, pixel_values)
        return super().forward(input_ids=input_ids, **kwargs)

    def generate(
        self,
        inputs: Tensor | None = None,
        *args: Any,
        generation_mode: str | None = None,
        pixel_values: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' generate().

        An image takes the tokens that it needs, whatever max_new_tokens is. guidance_scale uses the unconditional
        prompt, or negative_prompt_ids.

        Args:
            inputs: ids of the prompts, also as `input_ids`.
            *args: further arguments of generate().
            generation_mode: what may be generated: "text", "image" or "interleaved"; None for anything.
            pixel_values: images of the prompts, [N, 3, H, W] in [-1, 1].
            **kwargs: further options of generate().

        Raises:
            ValueError: the mode is unknown, or the prompt cannot be continued in it.
        """
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if ids is None:
            raise ValueError("give input_ids, as the processor makes them")
        ids = self.with_images(ids, pixel_values)
        if generation_mode is not None:
            kwargs = self.options_of_mode(ids, generation_mode, kwargs)
        return cast(Any, super()).generate(ids, *args, **kwargs)

    def options_of_mode(self, ids: Tensor, generation_mode: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The options of generate() for a mode."""
        if generation_mode not in MODES:
            raise ValueError(f"generation_mode must be one of {', '.join(MODES)}, but is {generation_mode!r}")
        rows, columns = self.config.grid
        room = kwargs.get("max_new_tokens") or DEFAULT_NEW_TOKENS
        if generation_mode == "image":
            room = rows * columns + 4  # <break> <image> before, </image> <eos> after
        elif generation_mode == "interleaved" and not kwargs.get("max_new_tokens"):
            room = self.config.max_position_embeddings - ids.shape[1]
        grammar = GrammarLogitsProcessor(self.vocab, MODES[generation_mode], rows * columns, room)
        guided = kwargs.get("guidance_scale") not in (None, 1, 1.0)
        if guided and generation_mode == "image" and kwargs.get("negative_prompt_ids") is None:
            negative = image_prompt_ids(unconditional(self.vocab), self.vocab, NO_TEXT)
            kwargs = {**kwargs, "negative_prompt_ids": ids.new_tensor([negative]).expand(len(ids), -1)}
        others = cast(list[Any], kwargs.get("logits_processor") or [])
        ends = {"eos_token_id": list(self.vocab.ends), "pad_token_id": self.vocab.pad}
        return {
            **ends,
            **kwargs,
            "max_new_tokens": room,
            "logits_processor": LogitsProcessorList([*others, grammar]),
        }


class NoText:
    """The text tokenizer of documents without text."""

    def encode(self, text: str) -> list[int]:
        raise AssertionError(f"no text expected, but {text!r}")

    def decode(self, ids: list[int]) -> str:
        raise AssertionError(f"no text expected, but {ids}")


NO_TEXT = NoText()


def hub_folder(name: str, options: dict[str, Any]) -> Path:
    """Download the image tokenizer of a repository of the hub, and return its folder."""
    kept = {key: options[key] for key in ("revision", "cache_dir", "token", "local_files_only") if key in options}
    return Path(cast(str, snapshot_download(name, allow_patterns=[f"{IMAGE_TOKENIZER}/*"], **kept)))
