"""Token shards: documents as flat ids with the places of their answers. tokenize_data and prepare write them, lm reads.

    FOLDER/tokenizer.json       the text tokenizer
    FOLDER/train.safetensors    ids [tokens], offsets [documents + 1], spans [documents, MAX_TARGETS, 2]
    FOLDER/meta.json            vocabulary layout, fingerprint of the image tokenizer, counts

A document is stored as it reads, `<eos> ... <eos>`; a span (start, end) marks an answer in it, which training moves to
the end behind a <mask> (cm3/masking.py). Documents without spans are captions with their picture.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cm3.text import TextTokenizer
from cm3.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.phrases import Target

MAX_TARGETS = 3
NUM_SPECIAL = 64


class Shard(NamedTuple):
    """Documents as flat arrays: ids [tokens], offsets [N + 1], spans [N, MAX_TARGETS, 2]."""

    ids: np.ndarray
    offsets: np.ndarray
    spans: np.ndarray

    def document(self, index: int) -> tuple[list[int], list[tuple[int, int]]]:
        ids = self.ids[self.offsets[index] : self.offsets[index + 1]].tolist()
        return ids, [(start, end) for start, end in self.spans[index].tolist() if end]


def read_shard(folder: Path) -> tuple[Shard, dict[str, Any]]:
    """The shard and meta.json. Raises ValueError where they are missing."""
    for name in ("train.safetensors", "meta.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: run python -m train.tokenize_data or train.prepare first")
    arrays = {name: array.numpy() for name, array in load_file(folder / "train.safetensors").items()}
    return Shard(arrays["ids"], arrays["offsets"], arrays["spans"]), json.loads((folder / "meta.json").read_text())


class ShardWriter:
    """Collects documents and writes them at once."""

    def __init__(self, text: TextTokenizer, image_tokenizer: ImageTokenizer):
        self.text, self.image_tokenizer = text, image_tokenizer
        self.vocab = Vocab(NUM_SPECIAL, len(text), image_tokenizer.num_codes)
        self.ids: list[int] = []
        self.offsets = [0]
        self.spans: list[list[list[int]]] = []

    def draw(self, words: str, codes: list[int]) -> None:
        """`<eos> words <break> <image> codes </image> <eos>`."""
        self._add([*self._text(words), *self._picture(codes)], [])

    def ask(self, asked: list[Target], codes: list[int]) -> None:
        """`<eos> prompt answer prompt answer <break> <image> codes </image> <eos>`, each answer marked."""
        ids: list[int] = []
        spans: list[list[int]] = []
        for i, target in enumerate(asked):
            ids += self._text((" " if i else "") + target.prompt)
            answer = self._text(target.answer)
            spans.append([len(ids) + 1, len(ids) + 1 + len(answer)])  # 1 for the opening <eos>
            ids += answer
        self._add(ids + self._picture(codes), spans)

    def save(self, folder: Path, **facts: Any) -> dict[str, Any]:
        """Write the three files; `facts` go into meta.json, whose content is returned."""
        folder.mkdir(parents=True, exist_ok=True)
        self.text.save(folder)
        dtype = torch.uint16 if len(self.vocab) <= 2**16 else torch.int32
        arrays = {"ids": torch.tensor(self.ids).to(dtype), "offsets": torch.tensor(self.offsets)}
        arrays["spans"] = torch.tensor(self.spans, dtype=torch.int16).view(-1, MAX_TARGETS, 2)
        save_file(arrays, folder / "train.safetensors")
        layout = {
            "num_special_tokens": self.vocab.num_special,
            "text_vocab_size": self.vocab.num_text,
            "image_vocab_size": self.vocab.num_codes,
            "image_grid": list(self.image_tokenizer.grid),
        }
        counts = {"documents": len(self.spans), "tokens": len(self.ids)}
        meta = {"vocab": layout, "image_tokenizer": self.image_tokenizer.fingerprint(), **counts, **facts}
        (folder / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return meta

    def _text(self, words: str) -> list[int]:
        return self.vocab.text_to_ids(self.text.encode(words))

    def _picture(self, codes: list[int]) -> list[int]:
        return [self.vocab.break_, self.vocab.image, *self.vocab.code_to_id(codes), self.vocab.end_image]

    def _add(self, ids: list[int], spans: list[list[int]]) -> None:
        assert len(spans) <= MAX_TARGETS, f"{len(spans)} answers in a document, at most {MAX_TARGETS}"
        self.ids += [self.vocab.eos, *ids, self.vocab.eos]
        self.offsets.append(len(self.ids))
        self.spans.append(spans + [[0, 0]] * (MAX_TARGETS - len(spans)))
