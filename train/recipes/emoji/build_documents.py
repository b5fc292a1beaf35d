"""Documents for the embedded language model: drawings by plan, plans by image, changes between images, and text.

    python -m train.recipes.emoji.build_documents --data data/emoji --image-tokenizer runs/image_tokenizer/model \
        --out data/emoji-documents

    draw      plan <break> image                               single drawings, large and small, and scenes of tiles
    read      plan, questions and answers behind the image     (cm3/tokens/masking.py moves them there)
    change    from: plan, to: plan <break> image, image        edits: paint, ground, things, places, style
    recall    documents of other images, then one of them      what retrieval brings (CM3leon, section 2.1)
    text      request -> plan; plan, instruction -> plan; plan -> caption in 24 languages

OUT is token shards. A shard depends on the seed and its number alone: an interrupted build continues, and shards that
are there stay.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track
from safetensors.numpy import load_file, save

from cm3.files import whole
from cm3.tokens.document import Text
from cm3.tokens.text_tokenizer import LETTERS, TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.documents.shards import NUM_SPECIAL, ShardWriter, finish
from train.recipes.emoji.documents import Builder, DocumentsConfig
from train.recipes.emoji.shelf import Codes, Shelf
from train.recipes.emoji.world import World
from train.runtime import config as configs

PARTS = 64  # of the drawings, that are encoded one after the other


def train_text(builder: Builder, config: DocumentsConfig, count: int) -> TextTokenizer:
    """The text tokenizer, of so many requests, a third as many instructions and translations, and all names."""
    rng = np.random.default_rng((config.seed, 1))

    def texts():
        for make in (builder.request, builder.instruct, builder.translate):
            for _ in range(count if make == builder.request else count // 3):
                yield "".join(item.text for item in make(rng) if isinstance(item, Text))
        for one in builder.world.concepts.values():
            yield from one.names.values()
            yield from one.others
            yield f"{one.name.upper()} {one.name.title()}"

    return TextTokenizer.train(texts(), config.text_vocab, pattern=LETTERS)


_BUILDERS: dict[tuple[str, bool], Builder] = {}  # of this process


def _builder(data: Path, image_tokenizer: str, config: DocumentsConfig, novel: bool, known: Path) -> Builder:
    """known: safetensors with the codes of the drawings alone, where it is there."""
    if (key := (f"{data} {image_tokenizer}", novel)) not in _BUILDERS:
        torch.set_num_threads(1)
        builder = next(iter(_BUILDERS.values()), None)
        shelf = builder.shelf if builder else Shelf.read(data, "train")
        codes = Codes(ImageTokenizer.from_pretrained(image_tokenizer))
        if known.exists():
            codes.learn(list(shelf.drawings.values()), [part for _, part in sorted(load_file(known).items())])
        _BUILDERS[key] = Builder(World.read(data), shelf, codes, config, novel)
    return _BUILDERS[key]


def encode_part(part: int, data: Path, image_tokenizer: str, config: DocumentsConfig, known: Path) -> list[np.ndarray]:
    """Codes of one of PARTS runs of the drawings, each alone, of each size."""
    builder = _builder(data, image_tokenizer, config, False, known)
    assert builder.codes is not None
    drawings = list(builder.shelf.drawings.values())
    first, last = (len(drawings) * n // PARTS for n in (part, part + 1))
    return builder.codes.encode_all(drawings[first:last])


def write_shard(
    number: int,
    data: Path,
    image_tokenizer: str,
    out: Path,
    config: DocumentsConfig,
    known: Path,
    text: TextTokenizer,
    vocab: Vocab,
) -> None:
    """One shard of every kind in its share; number -1 is the held-out one."""
    split = "held_out" if number < 0 else "train"
    if (out / f"{split}-{max(0, number):05}.safetensors").exists():
        return
    builder = _builder(data, image_tokenizer, config, number < 0, known)
    writer = ShardWriter(text, vocab)
    rng = np.random.default_rng((config.seed, 2, number + 1))
    jobs = []
    for kind, total in config.documents.items():
        first, last = (total * n // config.shards for n in (number, number + 1))
        jobs += [(kind, i) for i in (range(config.held_out) if number < 0 else range(first, last))]
    for j in rng.permutation(len(jobs)):
        kind, i = jobs[j]
        writer.sample(name=kind, documents=1)
        writer.add_ids(
            *builder.stored(kind, np.random.default_rng((config.seed, 3, number + 1, int(j))), i, vocab, text)
        )
    writer.save(out, split, max(0, number))


def build(
    data: Path, image_tokenizer: str, out: Path, config: DocumentsConfig, processes: int, texts: int = 60_000
) -> dict:
    """Writes the shards that are missing. Returns the content of meta.json. texts: that the text tokenizer learns
    from."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = ImageTokenizer.from_pretrained(image_tokenizer)
    world = World.read(data)
    if (out / "text" / "tokenizer.json").exists():
        text = TextTokenizer.load(out / "text")
    else:
        text = train_text(Builder(world, Shelf.read(data, "train"), None, config), config, texts)
        text.save(out / "text")
    vocab = Vocab(NUM_SPECIAL, len(text), tokenizer.num_codes, "plan", ((8, 8),))
    known = out / f"drawings-{tokenizer.fingerprint()}.safetensors"  # of another tokenizer the codes are others
    given = dict(data=data, image_tokenizer=image_tokenizer, config=config, known=known)
    if not known.exists():
        with ProcessPoolExecutor(processes) as pool:
            encoded = list(track(pool.map(partial(encode_part, **given), range(PARTS)), "drawings", PARTS))
        with whole(known) as part:
            part.write_bytes(
                save({str(i): np.concatenate(parts) for i, parts in enumerate(zip(*encoded, strict=True))})
            )
    make = partial(write_shard, out=out, text=text, vocab=vocab, **given)
    with ProcessPoolExecutor(processes) as pool:
        for _ in track(pool.map(make, range(-1, config.shards)), "shards", config.shards + 1):
            pass
    return finish(out, text, vocab, tokenizer, config=asdict(config))


def main(
    changes: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
    data: Annotated[Path, typer.Option(help="of train.recipes.emoji.build_dataset")] = Path("data/emoji"),
    image_tokenizer: Annotated[str, typer.Option(help="folder or name")] = "runs/image_tokenizer/model",
    out: Annotated[Path, typer.Option(help="folder of the shards")] = Path("data/emoji-documents"),
    processes: Annotated[int, typer.Option(help="that encode")] = 2,
) -> None:
    try:
        meta = build(data, image_tokenizer, out, configs.load(DocumentsConfig, None, changes or []), processes)
        print(json.dumps({"documents": meta["documents"], "tokens": meta["tokens"]}))
    except (ValueError, OSError) as error:
        raise SystemExit(f"build_documents: {error}") from None


if __name__ == "__main__":
    typer.run(main)
