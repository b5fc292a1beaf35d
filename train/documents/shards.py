"""Token shards: documents as flat ids, with the positions of their answers and the samples that they come from.

A document is stored as `<eos> ... <eos>`. A span (start, end) marks an answer in it. Training moves answers to the end
of the sequence, behind a <mask> (cm3/tokens/masking.py). A document without spans is text and images in the order in
which they are learnt. shard_files.py describes the files.
"""

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from cm3.files import sha256, whole, write_whole
from cm3.tokens.document import Answer, Document, Image, Span, Text
from cm3.tokens.encoding import encode, parts
from cm3.tokens.text_tokenizer import FILE, TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.documents.shard_files import LAYOUT, MAX_TARGETS, META, SPLITS, layout, open_shard, read_meta

NUM_SPECIAL = 64  # special ids of new shards


class Target(NamedTuple):
    """A question about an image.

    Attributes:
        task: "caption", "what", "kind", "colour", "style", "ground" or "is".
        prompt: the text before the answer, as the pipeline writes it.
        answer: the right answer.
    """

    task: str
    prompt: str
    answer: str


def questions(asked: Sequence[Target], image: Image) -> Document:
    """Return the document of an image and questions about it: prompts and answers in turn, then the image."""
    texts = ((Text((" " if i else "") + one.prompt), Answer(one.answer)) for i, one in enumerate(asked))
    return Document((*chain.from_iterable(texts), image))


class StoredDocument(NamedTuple):
    """A document of a shard.

    Attributes:
        ids: `<eos> ... <eos>`.
        spans: positions of its answers.
    """

    ids: list[int]
    spans: list[Span]


class ShardWriter:
    """Collects the documents of one shard, and writes the shard.

    Args:
        text: text tokenizer.
        vocab: layout of the ids.
    """

    def __init__(self, text: TextTokenizer, vocab: Vocab):
        self.text, self.vocab = text, vocab
        self.ids = array("I")  # a list would take nine times the memory
        self.offsets = [0]
        self.spans: list[list[list[int]]] = []
        self.texts: list[int] = []
        self.images: list[int] = []
        self.samples: list[int] = []
        self.manifest: list[dict[str, Any]] = []

    def sample(self, **facts: Any) -> None:
        """Begin a sample: the documents that are added next come from it. The facts are its row of the manifest."""
        self.manifest.append(facts)

    def add(self, document: Document) -> None:
        """Add a document.

        Raises:
            ValueError: the vocabulary lacks one of its codes.
        """
        self.add_ids(*encode(document, self.vocab, self.text))

    def add_ids(self, ids: Sequence[int], spans: Sequence[Span] = ()) -> None:
        """Add a document that has been encoded (cm3.tokens.encoding.encode)."""
        assert len(spans) <= MAX_TARGETS, f"{len(spans)} answers in a document, at most {MAX_TARGETS}"
        found = parts(ids, self.vocab)
        images = sum(part.is_image for part in found)
        self.ids.extend(ids)
        self.offsets.append(len(self.ids))
        self.spans.append([*map(list, spans), *([[0, 0]] * (MAX_TARGETS - len(spans)))])
        self.texts.append(len(found) - images)
        self.images.append(images)
        self.samples.append(len(self.manifest) - 1)

    def save(self, folder: Path, split: str = "train", number: int = 0, **facts: Any) -> None:
        """Write the shard and its manifest, each whole or not at all.

        Args:
            folder: of the shards.
            split: "train" or "held_out".
            number: of the shard in its split.
            facts: stored in the shard; `shard_facts` returns them.
        """
        assert split in SPLITS, split
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "ids": torch.from_numpy(np.array(self.ids, np.uint16 if len(self.vocab) <= 2**16 else np.uint32)),
            "offsets": torch.tensor(self.offsets),
            "spans": torch.tensor(self.spans, dtype=torch.int32).view(-1, MAX_TARGETS, 2),
            "texts": torch.tensor(self.texts, dtype=torch.int32),
            "images": torch.tensor(self.images, dtype=torch.int32),
            "samples": torch.tensor(self.samples, dtype=torch.int32),
        }
        stem = f"{split}-{number:05}"
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.manifest)
        write_whole(folder / f"{stem}.jsonl", rows, errors="backslashreplace")
        with whole(folder / f"{stem}.safetensors", f"{stem}.unfinished") as unfinished:
            # One key only: the order of several is random. save_file would make a file that nobody else may read.
            unfinished.write_bytes(save(arrays, {"facts": json.dumps(facts)}))


def save_text(text: TextTokenizer, folder: Path) -> None:
    """Write tokenizer.json."""
    write_whole(folder / FILE, text.tokenizer.to_str(pretty=True))


def clear(folder: Path) -> None:
    """Delete the shards in the folder; `finish` would count them."""
    for split in SPLITS:
        for path in folder.glob(f"{split}-*"):
            path.unlink()
    (folder / META).unlink(missing_ok=True)


def finish(folder: Path, text: TextTokenizer, vocab: Vocab, image_tokenizer: ImageTokenizer, **facts: Any) -> dict:
    """Write tokenizer.json and meta.json for the shards in the folder.

    Shards without documents are left out; they only mark that their samples have been read.

    Args:
        folder: of the shards.
        text: text tokenizer that made them.
        vocab: layout of the ids.
        image_tokenizer: image tokenizer that made them.
        facts: also written to meta.json.

    Returns:
        The content of meta.json.
    """
    save_text(text, folder)
    splits: dict[str, Any] = {}
    for split in SPLITS:
        shards = []
        for path in sorted(folder.glob(f"{split}-*.safetensors")):
            with safe_open(path, "np") as file:
                sizes = {name: file.get_slice(name).get_shape()[0] for name in ("ids", "texts")}
            if sizes["texts"]:
                shards.append(
                    {"name": path.name, "documents": sizes["texts"], "tokens": sizes["ids"], "sha256": sha256(path)}
                )
        splits[split] = {
            "documents": sum(shard["documents"] for shard in shards),
            "tokens": sum(shard["tokens"] for shard in shards),
            "shards": shards,
        }
    meta = {
        "vocab": layout(vocab, image_tokenizer.grid),
        "image_tokenizer": image_tokenizer.fingerprint(),
        "text_tokenizer": text.fingerprint(),
        "documents": splits["train"]["documents"],
        "tokens": splits["train"]["tokens"],
        **facts,
        "splits": splits,
    }
    write_whole(folder / META, json.dumps(meta, indent=1, ensure_ascii=False) + "\n", errors="backslashreplace")
    return meta


class Shards:
    """The documents of a split, by number. Their ids stay on the disk until they are read.

    Args:
        folder: of shards.
        split: "train" or "held_out".
        verify: read every shard once and compare its hash. Damaged shards are left out, and listed in `bad`.
        max_bad: largest share of the documents that may be in damaged shards.

    Attributes:
        meta: content of meta.json.
        bad: names of damaged shards, each with the reason.
        lengths: tokens of each document, [N]; 0 in damaged shards, so that the other documents keep their numbers.
        texts: number of texts in each document, [N].
        images: number of images in each document, [N].
        spans: positions of the answers, [N, MAX_TARGETS, 2].

    Raises:
        ValueError: the folder has no shards, or none of this split, or too many are damaged.
    """

    def __init__(self, folder: str | Path, split: str = "train", verify: bool = True, max_bad: float = 0.1):
        self.folder, self.split = Path(folder), split
        self.meta = read_meta(self.folder)
        self._manifests: dict[int, tuple[list[int], list[str]]] = {}
        facts = self.meta["splits"].get(split, {"shards": []})["shards"]
        if not sum(shard["documents"] for shard in facts):
            raise ValueError(f"{folder} has no documents of the split {split!r}")
        self.bad: dict[str, str] = {}
        self._ids: list[np.ndarray | None] = []
        self._offsets: list[np.ndarray] = []
        spans, texts, images, lengths = [], [], [], []
        size = self.vocab_size = len(self.vocab())
        for shard in facts:
            count = shard["documents"]
            try:
                ids, offsets, *counts = open_shard(self.folder / shard["name"], shard, size, verify)
            except (OSError, ValueError) as error:
                self.bad[shard["name"]] = str(error)
                ids, offsets = None, np.zeros(count + 1, np.int64)
                counts = np.zeros((count, MAX_TARGETS, 2), np.int32), *np.zeros((2, count), np.int32)
            self._ids.append(ids)
            self._offsets.append(offsets)
            lengths.append(np.diff(offsets))
            for all_of_them, more in zip((spans, texts, images), counts, strict=True):
                all_of_them.append(more)
        self._starts = np.cumsum([0, *(shard["documents"] for shard in facts)]).tolist()
        self.lengths, self.spans = np.concatenate(lengths), np.concatenate(spans)
        self.texts, self.images = np.concatenate(texts), np.concatenate(images)
        lost = int((self.lengths == 0).sum())
        if lost > max_bad * len(self):
            examples = "".join(f"; {name}: {reason}" for name, reason in list(self.bad.items())[:3])
            raise ValueError(
                f"{folder}: {len(self.bad)} of {len(facts)} shards with {lost} of {len(self)} documents "
                f"are damaged, more than max_bad = {max_bad:.0%}{examples}"
            )

    def __len__(self) -> int:
        """Return the number of documents, including those of damaged shards."""
        return len(self.lengths)

    def document(self, number: int) -> StoredDocument:
        """Read a document.

        Raises:
            ValueError: its shard is damaged.
        """
        shard, row = self._place(number)
        ids = self._ids[shard]
        if ids is None:
            raise ValueError(f"document {number} is in a damaged shard: {list(self.bad)}")
        start, end = self._offsets[shard][row : row + 2].tolist()
        return StoredDocument(ids[start:end].tolist(), [(a, b) for a, b in self.spans[number].tolist() if b])

    def text_tokenizer(self) -> TextTokenizer:
        """Load the text tokenizer.

        Raises:
            ValueError: it is not the one that made the shards.
        """
        text = TextTokenizer.load(self.folder)
        if (mark := text.fingerprint()) != self.meta["text_tokenizer"]:
            raise ValueError(
                f"{self.folder / FILE} is not the text tokenizer that made the shards ({mark}, want "
                f"{self.meta['text_tokenizer']}): prepare them anew"
            )
        return text

    def image_tokenizer(self, name: str = "") -> ImageTokenizer:
        """Load the image tokenizer that made the shards.

        Args:
            name: folder or name; "" = where it was when the shards were made.

        Raises:
            ValueError: it is not the one that made the shards.
        """
        if not (name := name or self.meta.get("image_tokenizer_name", "")):
            raise ValueError(f"{self.folder} does not say which image tokenizer made it: set image_tokenizer")
        image = ImageTokenizer.from_pretrained(name)
        self.check_image_tokenizer(image)
        return image

    def check_image_tokenizer(self, image: ImageTokenizer) -> None:
        """Check the fingerprint of an image tokenizer.

        Raises:
            ValueError: it is not the one that made the shards.
        """
        if (mark := image.fingerprint()) != self.meta["image_tokenizer"]:
            raise ValueError(
                f"the shards in {self.folder} were made with another image tokenizer "
                f"({self.meta['image_tokenizer']}, this one is {mark}): set image_tokenizer to that one, or prepare "
                "the shards anew"
            )

    def vocab(self) -> Vocab:
        """Return the layout of the ids."""
        facts = self.meta["vocab"]
        grids = tuple((rows, columns) for rows, columns in facts["image_grids"])
        special, text, codes = (facts[key] for key in LAYOUT)
        return Vocab(special, text, codes, facts["document_form"], grids)

    def sample(self, number: int) -> dict[str, Any]:
        """Return the manifest's row of the sample that a document comes from; {} where the manifest lacks it.

        Raises:
            ValueError: the row is damaged.
        """
        shard, row = self._place(number)
        name = self.meta["splits"][self.split]["shards"][shard]["name"]
        if shard not in self._manifests:
            path = (self.folder / name).with_suffix(".jsonl")
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
            with safe_open(self.folder / name, "np") as file:
                self._manifests[shard] = file.get_tensor("samples").tolist(), lines
        samples, lines = self._manifests[shard]
        try:
            return json.loads(lines[samples[row]]) if 0 <= samples[row] < len(lines) else {}
        except RecursionError as error:
            raise ValueError(f"{name}: line {samples[row] + 1} of its manifest is damaged") from error

    def _place(self, number: int) -> tuple[int, int]:
        """Return the shard of a document, and its row in the shard."""
        assert 0 <= number < len(self), f"document {number} of {len(self)}"
        shard = bisect_right(self._starts, number) - 1
        return shard, number - self._starts[shard]

    def fingerprint(self) -> str:
        """Return twelve hex digits of everything on which the content and the order of the documents depend."""
        facts = [(self.meta["splits"], sorted(self.bad), self.meta["image_tokenizer"], self.meta["text_tokenizer"])]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
