"""The processor of transformers: texts and images to ids and pixels, and ids to texts and images.

The ids come from tokens/encoding.py and not from a rendered template, so that a text that spells a special token stays
text. Each code of an image is <placeholder> until the model (modeling.py) encodes its pixels.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image as PIL_Image
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature, ProcessorMixin
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from cm3.tensors import to_rows
from cm3.tokens.document import Document, Image, Item, Mask, Text
from cm3.tokens.encoding import image_prompt_ids, prompt_ids, reply_ids, split, text_ids
from cm3.tokens.templates import WORDS, language_of
from cm3.tokens.vocab import Vocab
from tokenizer_image.pixels import MAX_PIXELS, open_image, to_pil, to_tensor

IMAGE, WORDING = "image", "text"  # kinds of content in a message

# Renders a chat for people. The ids of a chat come from apply_chat_template.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}<image>{% elif item['type'] == 'text' %}"
    "{{ item['text'] }}{% endif %}{% endfor %}{% endif %}{% if not loop.last %}\n{% endif %}{% endfor %}"
)


class CM3ImageProcessor(BaseImageProcessor):
    """Turns images into pixel_values for the image tokenizer: the middle square, scaled, in [-1, 1].

    Args:
        resolution: side of the square, in pixels.
        max_pixels: of an image, at most.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, resolution: int = 64, max_pixels: int = MAX_PIXELS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.resolution, self.max_pixels = resolution, max_pixels

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, return_tensors: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """One image or a list of images to pixel_values, [N, 3, H, W]. Takes and raises what open_image does
        (tokenizer_image/pixels.py)."""
        several = as_list(images)
        size = self.resolution, self.resolution
        opened = (open_image(image, self.max_pixels, least=2 * self.resolution) for image in several)
        pixels = torch.stack([to_tensor(image, size) for image in opened])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def postprocess(self, pixel_values: Tensor, **kwargs: Any) -> list[PIL_Image.Image]:
        """[N, 3, H, W] in [-1, 1] to images."""
        return [to_pil(pixels) for pixels in pixel_values.detach().float().cpu()]


class TextIds:
    """The tokenizer of a model folder (tokens/tokenizer_json.py) with ids from 0, as tokens/encoding.py needs it."""

    def __init__(self, tokenizer: TokenizersBackend, vocab: Vocab) -> None:
        self.tokenizer, self.vocab = tokenizer, vocab

    def encode(self, text: str) -> list[int]:
        return self.vocab.ids_to_text(cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"]))

    def decode(self, ids: list[int]) -> str:
        return cast(str, self.tokenizer.decode(self.vocab.text_to_ids(ids)))  # pyright: ignore[reportUnknownMemberType]


class CM3Processor(ProcessorMixin):
    """Turns texts and images into a model's inputs, and its outputs into texts and images.

    Args:
        image_processor: for images.
        tokenizer: for texts.
        vocabulary: numbers of special, text and image ids of the model.
        grid: rows and columns of an image.
        form: of the documents, one of config.FORMS.
        chat_template: renders a chat for people.
    """

    def __init__(
        self,
        image_processor: CM3ImageProcessor,
        tokenizer: TokenizersBackend,
        vocabulary: Sequence[int] = (64, 4096, 2048),
        grid: Sequence[int] = (8, 8),
        form: str = "cm3",
        chat_template: str | None = CHAT_TEMPLATE,
        **kwargs: Any,
    ) -> None:
        self.vocabulary, self.grid, self.form = list(vocabulary), list(grid), form
        cast(Any, super()).__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def vocab(self) -> Vocab:
        special, text, codes = self.vocabulary
        return Vocab(special, text, codes, self.form)

    @property
    def text(self) -> "TextIds":
        return TextIds(self.tokenizer, self.vocab)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        generation_mode: str = "text",
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prompts for generate() with the same generation_mode, left-padded.

        An image follows its text, as the models were trained, or precedes it in the form "chameleon".

        Args:
            images: one image, a list with one for each text, or a list of lists.
            text: one text or several.
            generation_mode: "text", "image" or "interleaved".
            return_tensors: as in transformers.
            **kwargs: ignored.

        Returns:
            input_ids and attention_mask, [B, T], and with images pixel_values, [N, 3, H, W].

        Raises:
            ValueError: the numbers of texts and images differ, or the mode is unknown.
        """
        texts = [text] if isinstance(text, str) or text is None else list(text)
        groups = grouped(images, len(texts))
        rows = [
            self.prompt([*self.parts(words, len(some))], generation_mode)
            for words, some in zip(texts, groups, strict=True)
        ]
        return self.batch(rows, [image for some in groups for image in some], return_tensors)

    def parts(self, words: str | None, images: int) -> list[Item]:
        """The items of a prompt: the text, and as many images whose codes are not known yet."""
        said: list[Item] = [Text(words)] if words else []
        shown: list[Item] = [self.unseen()] * images
        return [*said, *shown] if self.vocab.has_masks else [*shown, *said]

    def unseen(self) -> Image:
        """An image whose codes are not known yet."""
        return Image(torch.zeros(tuple(self.grid), dtype=torch.long))

    def prompt(self, items: list[Item], generation_mode: str) -> list[int]:
        """The ids of a prompt, with <placeholder> for each code."""
        vocab, document = self.vocab, Document(tuple(items))
        if generation_mode == "image":
            ids = image_prompt_ids(document, vocab, self.text)
        elif generation_mode == "interleaved":
            ids = reply_ids(document, vocab, self.text)
        elif generation_mode == "text":
            shown = [i for i, item in enumerate(items) if isinstance(item, Image)]
            if vocab.has_masks and shown:  # the answer precedes the image that it is about (CM3leon 4)
                items = [*items[: shown[0]], Mask(), *items[shown[0] :]]
            ids = (prompt_ids if vocab.has_masks and shown else reply_ids)(Document(tuple(items)), vocab, self.text)
        else:
            raise ValueError(f"generation_mode must be text, image or interleaved, but is {generation_mode!r}")
        return [vocab.placeholder if vocab.is_code(id) else id for id in ids]

    def batch(self, rows: list[list[int]], images: list[Any], return_tensors: str | None) -> BatchFeature:
        """Left-pad the ids, and add the pixels."""
        longest = max(map(len, rows))
        data: dict[str, Any] = {
            "input_ids": [[self.vocab.pad] * (longest - len(row)) + row for row in rows],
            "attention_mask": [[0] * (longest - len(row)) + [1] * len(row) for row in rows],
        }
        if images:
            data["pixel_values"] = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        generation_mode: str = "text",
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """A chat as the model's inputs with `tokenize`, as text for people without.

        Text about an image is a question, or an instruction in mode "image". An image alone is captioned. Text alone is
        a prompt for generation. The models were trained on single turns: a chat is one message of the user, and the
        beginning of the assistant's text if there is one, which the model continues.

        Args:
            conversation: messages, [{"role": "user", "content": [{"type": "image", "image": ...}, {"type": "text",
                "text": ...}]}], or a list of such lists.
            chat_template: as in transformers.
            tokenize: see above.
            generation_mode: as for the processor itself.
            return_tensors: as in transformers.
            **kwargs: as in transformers.

        Raises:
            ValueError: the chat has other messages, or content that is neither text nor image.
        """
        if not tokenize:
            return cast(Any, super()).apply_chat_template(conversation, chat_template, tokenize=False, **kwargs)
        several = [conversation] if isinstance(conversation[0], dict) else conversation
        rows: list[list[int]] = []
        images: list[Any] = []
        for messages in several:
            words, shown, begun = read_messages(messages)
            items = self.parts(self.wording(words, bool(shown), generation_mode), len(shown))
            said = text_ids(begun, self.vocab, self.text) if begun else []
            rows.append([*self.prompt(items, generation_mode), *said])
            images += shown
        return self.batch(rows, images, return_tensors)

    def wording(self, words: str, shown: bool, generation_mode: str) -> str:
        """The prompt of the task that a message asks for."""
        if not shown or generation_mode == "interleaved":
            return words
        task = "edit" if generation_mode == "image" else "answer" if words.strip() else "caption"
        return WORDS[self.form][task][language_of(words)].format(words=words.strip())

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """The text in each sequence of ids, [B, T], without image codes, and by default without special tokens."""
        rows = to_rows(torch.as_tensor(generated_outputs))
        kept = [[id for id in row if not skip_special_tokens or self.vocab.is_text(id)] for row in rows]
        return [self.tokenizer.decode(row) for row in kept]

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """The model's outputs as texts and images.

        Args:
            generated_outputs: for "text" and "interleaved", the model's ids, [B, T] or [T], prompt included; for
                "image", the pixels of decode_image_tokens, [B, 3, H, W].
            skip_special_tokens: whether texts are without special tokens.
            generation_mode: "text", "image" or "interleaved".
            **kwargs: ignored.

        Returns:
            For "text" the texts; for "image" the images; for "interleaved" lists of texts and codes, [h, w], in order.

        Raises:
            ValueError: the mode is unknown.
        """
        if generation_mode == "image":
            pixels = generated_outputs if generated_outputs.ndim == 4 else generated_outputs[None]
            return self.image_processor.postprocess(pixels)
        ids = torch.as_tensor(generated_outputs)
        ids = ids if ids.ndim == 2 else ids[None]
        if generation_mode in (None, "text"):
            return self.post_process_image_text_to_text(ids, skip_special_tokens)
        if generation_mode != "interleaved":
            raise ValueError(f"generation_mode must be text, image or interleaved, but is {generation_mode!r}")
        return [self.items(row) for row in to_rows(ids)]

    def items(self, row: list[int]) -> list[str | Tensor]:
        """The texts and the images' codes, [h, w], of a document."""
        found: list[str | Tensor] = []
        for ids, is_image in split(row, self.vocab):
            if is_image:
                found.append(torch.tensor(self.vocab.id_to_code(ids)).view(tuple(self.grid)))
            else:
                found.append(self.tokenizer.decode(ids))
        return found


def grouped(images: Any, rows: int) -> list[list[Any]]:
    """The images of each text.

    Raises:
        ValueError: their numbers differ.
    """
    if images is None:
        return [[] for _ in range(rows)]
    groups = as_list(images)
    if len(groups) != rows and rows == 1 and not any(isinstance(one, list | tuple) for one in groups):
        groups = [groups]
    if len(groups) != rows:
        raise ValueError(f"{len(groups)} images and {rows} texts: give an image, or a list of them, for each text")
    return [as_list(one) for one in groups]


def as_list(value: Any) -> list[Any]:
    """A list or tuple as a list, anything else as a list of one."""
    return list(cast(Sequence[Any], value)) if isinstance(value, list | tuple) else [value]


def read_messages(messages: Sequence[Any]) -> tuple[str, list[Any], str]:
    """Text and images of the user's message, and the beginning of the assistant's.

    Raises:
        ValueError: other messages.
    """
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise ValueError(f"a conversation of {', '.join(roles)}: the models were trained on one message of a user")
    words, images = read_content(messages[0]["content"])
    begun, drawn = read_content(messages[1]["content"]) if len(messages) == 2 else ("", [])
    if drawn:
        raise ValueError("an image of the assistant cannot be continued: give text")
    return words, images, begun


def read_content(content: Any) -> tuple[str, list[Any]]:
    """Text and images of a message.

    Raises:
        ValueError: other content.
    """
    if isinstance(content, str):
        return content, []
    words: list[str] = []
    images: list[Any] = []
    for item in content:
        kind = item.get("type")
        if kind == WORDING:
            words.append(item["text"])
        elif kind == IMAGE:
            images.append(next(item[key] for key in ("image", "path", "url") if key in item))
        else:
            raise ValueError(f"content of type {kind!r}: text and image can be read")
    return " ".join(words), images
