"""Token shards: documents as flat ids, with the places of their answers and where they come from.

    FOLDER/tokenizer.json              the text tokenizer
    FOLDER/train-00000.safetensors     ids [tokens] uint16 or uint32, offsets [N + 1], spans [N, MAX_TARGETS, 2],
                                       texts and images [N]: runs of text, and images, in each document,
                                       samples [N] rows of the manifest
    FOLDER/train-00000.jsonl           the manifest: one row a sample, with source, licence, owner and hash
    FOLDER/held_out-00000.*            likewise, to evaluate on
    FOLDER/meta.json                   vocabulary layout, fingerprints of both tokenizers, counts and hash of each shard

A document is stored as it reads, `<eos> ... <eos>`; a span (start, end) marks an answer in it, which training moves to
the end behind a <mask> (cm3/tokens/masking.py). Documents without spans are text and images in the order they are
learnt.
"""

import hashlib
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from cm3.files import sha256, whole, write_whole
from cm3.model.config import FORMS
from cm3.tokens.document import Answer, Document, Image, Span, Text
from cm3.tokens.encoding import encode, parts
from cm3.tokens.text_tokenizer import FILE, TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer


class Target(NamedTuple):
    """One thing to ask of an image.

    Attributes:
        task: "caption", "what", "kind", "colour", "style", "ground" or "is".
        prompt: the text before the answer, as the pipeline writes it.
        answer: the text that the model has to give.
    """

    task: str
    prompt: str
    answer: str


def questions(asked: Sequence[Target], image: Image) -> Document:
    """Prompts and answers in turn, then the image that they are about."""
    said = ((Text((" " if i else "") + one.prompt), Answer(one.answer)) for i, one in enumerate(asked))
    return Document((*chain.from_iterable(said), image))


MAX_TARGETS = 4
NUM_SPECIAL = 64
META = "meta.json"
SPLITS = ("train", "held_out")
NAMED = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}\.safetensors")
MOST_DOCUMENTS = 10_000_000  # of a shard
LAYOUT = ("num_special_tokens", "text_vocab_size", "image_vocab_size")  # as Vocab counts them


class StoredDocument(NamedTuple):
    """`<eos> ... <eos>`, and the places of its answers."""

    ids: list[int]
    spans: list[Span]


class ShardWriter:
    """Collects the documents of one shard and writes them at once.

    Args:
        text: text tokenizer.
        vocab: layout of the ids.
    """

    def __init__(self, text: TextTokenizer, vocab: Vocab):
        self.text, self.vocab = text, vocab
        self.ids = array("I")  # a list would take nine times the room
        self.offsets = [0]
        self.spans: list[list[list[int]]] = []
        self.texts: list[int] = []
        self.images: list[int] = []
        self.samples: list[int] = []
        self.manifest: list[dict[str, Any]] = []

    def sample(self, **facts: Any) -> None:
        """The row of the manifest that the documents added from now on come from."""
        self.manifest.append(facts)

    def add(self, document: Document) -> None:
        """Its ids, and where its answers stand. Raises ValueError for a code that the vocabulary does not have."""
        self.add_ids(*encode(document, self.vocab, self.text))

    def add_ids(self, ids: Sequence[int], spans: Sequence[Span] = ()) -> None:
        """A document as `encode` gives it."""
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
        """Write the shard and its manifest, each beside its place first, so that what has its name is whole. `facts`
        stay with the shard (`shard_facts`)."""
        assert split in SPLITS, split
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "ids": torch.from_numpy(np.array(self.ids, np.uint16 if len(self.vocab) <= 2**16 else np.uint32)),
            "offsets": torch.tensor(self.offsets),
            "spans": torch.tensor(self.spans, dtype=torch.int32).view(-1, MAX_TARGETS, 2),
            "texts": torch.tensor(self.texts, dtype=torch.int32),
            "pictures": torch.tensor(self.images, dtype=torch.int32),
            "samples": torch.tensor(self.samples, dtype=torch.int32),
        }
        stem = f"{split}-{number:05}"
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.manifest)
        write_whole(folder / f"{stem}.jsonl", rows, errors="backslashreplace")
        with whole(folder / f"{stem}.safetensors", f"{stem}.unfinished") as unfinished:
            # Of several keys the order would be by chance; and save_file makes a file that nobody else may read.
            unfinished.write_bytes(save(arrays, {"facts": json.dumps(facts)}))


def save_text(text: TextTokenizer, folder: Path) -> None:
    """Write tokenizer.json, whole or not at all."""
    write_whole(folder / FILE, text.tokenizer.to_str(pretty=True))


def clear(folder: Path) -> None:
    """Delete the shards that are in the folder: `finish` counts what it finds."""
    for split in SPLITS:
        for path in folder.glob(f"{split}-*"):
            path.unlink()
    (folder / META).unlink(missing_ok=True)


def shard_facts(path: Path) -> dict[str, Any]:
    """What a shard's writer noted in it. Raises ValueError for a file that is no shard."""
    try:
        with safe_open(path, "np") as file:
            return json.loads((file.metadata() or {})["facts"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a whole shard ({error})") from error


def layout(vocab: Vocab, grid: tuple[int, int]) -> dict[str, Any]:
    """The fields of CM3Config that shards determine."""
    return {
        "num_special_tokens": vocab.num_special,
        "text_vocab_size": vocab.num_text,
        "image_vocab_size": vocab.num_codes,
        "image_grid": list(grid),
        "image_grids": [list(grid) for grid in vocab.grids],
        "document_form": vocab.form,
    }


def finish(folder: Path, text: TextTokenizer, vocab: Vocab, image_tokenizer: ImageTokenizer, **facts: Any) -> dict:
    """Write tokenizer.json and meta.json over the shards that are in the folder. Returns the content of meta.json.

    Shards without documents, which mark that there was nothing to write, are left out.
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


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json. Raises ValueError where the folder holds no shards."""
    for name in (META, FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: run python -m train.prepare first")
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        sizes = {key: meta["vocab"][key] for key in LAYOUT}
        meta["vocab"] = {
            "image_grids": [],
            "document_form": FORMS[0],
            **meta["vocab"],
        }  # older shards have neither
        marks = [meta[key] for key in ("image_tokenizer", "text_tokenizer")]
        shards = [shard for split in meta["splits"].values() for shard in split["shards"]]
        numbers = [
            *sizes.values(),
            *meta["vocab"]["image_grid"],
            *(side for rows, columns in meta["vocab"]["image_grids"] for side in (rows, columns)),
            *(shard[key] for shard in shards for key in ("documents", "tokens")),
        ]
        words = [*marks, *(shard[key] for shard in shards for key in ("name", "sha256"))]
        assert all(type(number) is int and number >= 0 for number in numbers), "a count is no number"
        assert all(shard["documents"] <= MOST_DOCUMENTS for shard in shards), "a count is beyond reason"
        assert all(isinstance(word, str) for word in words), "a name is no text"
        names = [shard["name"] for shard in shards]
        assert all(NAMED.fullmatch(name) for name in names), "a shard has a name that no shard has"
        assert len({*names}) == len(names), "two shards have one name"
        assert "train" in meta["splits"] and len(meta["vocab"]["image_grid"]) == 2
        assert meta["vocab"]["document_form"] in FORMS, "documents of an unknown form"
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise ValueError(
            f"{folder / META} is damaged, or of an older version ({error!r:.200}): prepare it anew"
        ) from error
    return meta


class Shards:
    """The documents of a split, by number; ids are read from the disk as they are asked for.

    Args:
        folder: of shards.
        split: "train" or "held_out".
        verify: read every shard once and compare its hash; a bad one is left out and named in `bad`.
        max_bad: largest share of the documents that bad shards may hold.

    Attributes:
        meta: content of meta.json.
        bad: shard -> reason.
        lengths: tokens of each document, [N]; 0 in bad shards, so that the other documents keep their numbers.
        texts, images: runs of text, and images, in each document, [N].
        spans: places of the answers, [N, MAX_TARGETS, 2].

    Raises:
        ValueError: no shards in the folder, none of this split, or too many bad ones.
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
                f"are bad, more than max_bad = {max_bad:.0%}{examples}"
            )

    def __len__(self) -> int:
        """Documents, those of bad shards too."""
        return len(self.lengths)

    def document(self, number: int) -> StoredDocument:
        """Raises ValueError for a document of a bad shard."""
        shard, row = self._place(number)
        ids = self._ids[shard]
        if ids is None:
            raise ValueError(f"document {number} lies in a bad shard: {list(self.bad)}")
        start, end = self._offsets[shard][row : row + 2].tolist()
        return StoredDocument(ids[start:end].tolist(), [(a, b) for a, b in self.spans[number].tolist() if b])

    def text_tokenizer(self) -> TextTokenizer:
        """tokenizer.json. Raises ValueError where it is not the one that the shards were made with."""
        text = TextTokenizer.load(self.folder)
        if (mark := text.fingerprint()) != self.meta["text_tokenizer"]:
            raise ValueError(
                f"{self.folder / FILE} is not the text tokenizer that the shards were made with ({mark}, "
                f"want {self.meta['text_tokenizer']}): prepare them anew"
            )
        return text

    def check_image_tokenizer(self, image: ImageTokenizer) -> None:
        """Raises ValueError where the shards were made with another one."""
        if (mark := image.fingerprint()) != self.meta["image_tokenizer"]:
            raise ValueError(
                f"the shards in {self.folder} were made with another image tokenizer "
                f"({self.meta['image_tokenizer']}, this one is {mark}): name that one, or prepare them "
                "anew"
            )

    def vocab(self) -> Vocab:
        facts = self.meta["vocab"]
        grids = tuple((rows, columns) for rows, columns in facts["image_grids"])
        special, text, codes = (facts[key] for key in LAYOUT)
        return Vocab(special, text, codes, facts["document_form"], grids)

    def sample(self, number: int) -> dict[str, Any]:
        """The row of the manifest that a document comes from; an empty one where the manifest lacks it."""
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
        """The shard of a document, and its row in it."""
        assert 0 <= number < len(self), f"document {number} of {len(self)}"
        shard = bisect_right(self._starts, number) - 1
        return shard, number - self._starts[shard]

    def fingerprint(self) -> str:
        """Twelve hex digits of all that the order and content of the documents depend on."""
        facts = [(self.meta["splits"], sorted(self.bad), self.meta["image_tokenizer"], self.meta["text_tokenizer"])]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def open_shard(path: Path, facts: dict[str, Any], vocab_size: int, verify: bool) -> tuple[np.ndarray, ...]:
    """ids (a view of the file), offsets, spans, texts, images. Raises ValueError where the file is not what meta.json
    says."""
    if not path.is_file():
        raise ValueError("missing")
    if verify and sha256(path) != facts["sha256"]:
        raise ValueError(f"damaged: {path.stat().st_size} bytes whose hash is not the one in {META}")
    try:
        with safe_open(path, "np") as file:
            parts = [file.get_tensor(name) for name in ("offsets", "spans", "texts", "pictures")]
        with path.open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
            place = json.loads(raw.read(header))["ids"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # TypeError: a dtype that numpy lacks
        raise ValueError(f"not a whole shard ({error})") from error
    dtype = {"U16": np.uint16, "U32": np.uint32}.get(place["dtype"])
    if dtype is None or len(place["shape"]) != 1:
        raise ValueError(f"ids are {place['dtype']} of shape {place['shape']}, not a row of uint16 or uint32")
    if kinds := [str(part.dtype) for part in parts if part.dtype.kind not in "iu"]:
        raise ValueError(f"its index holds {kinds[0]}, not whole numbers")
    offsets, (spans, texts, images) = parts[0].astype(np.int64), (part.astype(np.int32) for part in parts[1:])
    count, size = facts["documents"], place["shape"][0]
    if [part.shape for part in parts] != [(count + 1,), (count, MAX_TARGETS, 2), (count,), (count,)]:
        raise ValueError(f"its index is of {len(texts)} documents, {META} says {count}")
    lengths = np.diff(offsets)
    if offsets[0] != 0 or (lengths < 2).any() or offsets[-1] != size or facts["tokens"] != size:
        raise ValueError(f"its index does not fit its {size} ids")
    if (spans < 0).any() or (spans[..., 1] > lengths[:, None]).any() or (spans[..., 0] > spans[..., 1]).any():
        raise ValueError("answers lie outside their documents")
    if (texts < 0).any() or (images < 0).any():
        raise ValueError("it counts less than no text or image")
    ids = np.memmap(path, dtype, "r", 8 + header + place["data_offsets"][0], (size,))
    if verify and int(ids.max()) >= vocab_size:
        raise ValueError(f"id {int(ids.max())} is outside the vocabulary of {vocab_size}")
    return ids, offsets, spans, texts, images
