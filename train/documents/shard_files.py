"""The files of a folder of token shards, and their checks.

FOLDER/tokenizer.json              the text tokenizer
FOLDER/train-00000.safetensors     ids [tokens] uint16 or uint32, offsets [N + 1], spans [N, MAX_TARGETS, 2],
                                   texts and images [N]: numbers of texts and images in each document,
                                   samples [N]: line of the manifest for each document
FOLDER/train-00000.jsonl           the manifest: one line for each sample, with source, licence, owner and hash
FOLDER/held_out-00000.*            likewise, for evaluation
FOLDER/meta.json                   vocabulary layout, fingerprints of both tokenizers, counts and hash of each shard
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cm3.files import sha256
from cm3.model.config import FORMS
from cm3.tokens.text_tokenizer import FILE
from cm3.tokens.vocab import Vocab

MAX_TARGETS = 4  # answers in a document
META = "meta.json"
SPLITS = ("train", "held_out")
MAX_DOCUMENTS = 10_000_000  # of a shard
LAYOUT = ("num_special_tokens", "text_vocab_size", "image_vocab_size")  # as Vocab counts them

_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}\.safetensors")


def layout(vocab: Vocab, grid: tuple[int, int]) -> dict[str, Any]:
    """Return the fields of CM3Config that shards determine.

    Args:
        vocab: of the shards.
        grid: rows and columns of codes in an image.
    """
    return {
        "num_special_tokens": vocab.num_special,
        "text_vocab_size": vocab.num_text,
        "image_vocab_size": vocab.num_codes,
        "image_grid": list(grid),
        "image_grids": [list(grid) for grid in vocab.grids],
        "document_form": vocab.form,
    }


def read_meta(folder: Path) -> dict[str, Any]:
    """Read meta.json.

    Raises:
        ValueError: the folder holds no shards, or meta.json is damaged.
    """
    for name in (META, FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: run python -m train.prepare first")
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        shards = [shard for split in meta["splits"].values() for shard in split["shards"]]
        numbers = [
            *(meta["vocab"][key] for key in LAYOUT),
            *meta["vocab"]["image_grid"],
            *(side for rows, columns in meta["vocab"]["image_grids"] for side in (rows, columns)),
            *(shard[key] for shard in shards for key in ("documents", "tokens")),
        ]
        strings = [
            *(meta[key] for key in ("image_tokenizer", "text_tokenizer")),
            *(shard[key] for shard in shards for key in ("name", "sha256")),
        ]
        assert all(type(number) is int and number >= 0 for number in numbers), "a count is not a whole number"
        assert all(shard["documents"] <= MAX_DOCUMENTS for shard in shards), "a shard has too many documents"
        assert all(isinstance(string, str) for string in strings), "a name is not a string"
        names = [shard["name"] for shard in shards]
        assert all(_SHARD_NAME.fullmatch(name) for name in names), "a file name is not that of a shard"
        assert len({*names}) == len(names), "two shards have the same name"
        assert "train" in meta["splits"] and len(meta["vocab"]["image_grid"]) == 2
        assert meta["vocab"]["document_form"] in FORMS, "the form of the documents is unknown"
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise ValueError(
            f"{folder / META} is damaged, or of an older version ({error!r:.200}): prepare it anew"
        ) from error
    return meta


def shard_facts(path: Path) -> dict[str, Any]:
    """Return the facts that ShardWriter.save stored in a shard.

    Raises:
        ValueError: the file is not a whole shard.
    """
    try:
        with safe_open(path, "np") as file:
            return json.loads((file.metadata() or {})["facts"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a whole shard ({error})") from error


def open_shard(path: Path, facts: dict[str, Any], vocab_size: int, verify: bool) -> tuple[np.ndarray, ...]:
    """Open a shard and check it.

    Args:
        path: the file.
        facts: what meta.json says about it.
        vocab_size: ids from here on are errors.
        verify: compare the hash, and check all ids. This reads the whole file.

    Returns:
        ids (mapped from the file), offsets, spans, texts, images.

    Raises:
        ValueError: the file is missing or damaged, or is not the one that meta.json describes.
    """
    if not path.is_file():
        raise ValueError("missing")
    if verify and sha256(path) != facts["sha256"]:
        raise ValueError(f"damaged: {path.stat().st_size} bytes whose hash is not the one in {META}")
    try:
        with safe_open(path, "np") as file:
            parts = [file.get_tensor(name) for name in ("offsets", "spans", "texts", "images")]
        with path.open("rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
            entry = json.loads(raw.read(header))["ids"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # TypeError: a dtype that numpy lacks
        raise ValueError(f"not a whole shard ({error})") from error
    dtype = {"U16": np.uint16, "U32": np.uint32}.get(entry["dtype"])
    if dtype is None or len(entry["shape"]) != 1:
        raise ValueError(f"ids are {entry['dtype']} of shape {entry['shape']}, not a vector of uint16 or uint32")
    if kinds := [str(part.dtype) for part in parts if part.dtype.kind not in "iu"]:
        raise ValueError(f"its index holds {kinds[0]}, not whole numbers")
    offsets, (spans, texts, images) = parts[0].astype(np.int64), (part.astype(np.int32) for part in parts[1:])
    count, size = facts["documents"], entry["shape"][0]
    if [part.shape for part in parts] != [(count + 1,), (count, MAX_TARGETS, 2), (count,), (count,)]:
        raise ValueError(f"its index is of {len(texts)} documents, {META} says {count}")
    lengths = np.diff(offsets)
    if offsets[0] != 0 or (lengths < 2).any() or offsets[-1] != size or facts["tokens"] != size:
        raise ValueError(f"its index does not fit its {size} ids")
    if (spans < 0).any() or (spans[..., 1] > lengths[:, None]).any() or (spans[..., 0] > spans[..., 1]).any():
        raise ValueError("answers lie outside their documents")
    if (texts < 0).any() or (images < 0).any():
        raise ValueError("a number of texts or images is negative")
    ids = np.memmap(path, dtype, "r", 8 + header + entry["data_offsets"][0], (size,))
    if verify and int(ids.max()) >= vocab_size:
        raise ValueError(f"id {int(ids.max())} is outside the vocabulary of {vocab_size}")
    return ids, offsets, spans, texts, images
