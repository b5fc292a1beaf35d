"""Turn your own images and texts into token shards that train.lm reads.

    python -m train.prepare SOURCE --out data/mine [--image-tokenizer emoji | runs/mine/model]
    python -m train.prepare SOURCE --out data/mine --model emoji                  # to fine-tune that model
    python -m train.prepare SOURCE --out data/mine --processes 8
    torchrun --nproc-per-node 4 -m train.prepare SOURCE --out data/mine           # ranks share the work through OUT

train/documents/sources.py describes SOURCE. An image with a caption gives two documents, for generation and for
captioning; interleaved samples give documents in their order. To resume an interrupted run, run the same command
again. train/documents/shard_files.py describes the files in OUT. In addition, there are

    OUT/prepare.json         the settings of the run; a command with others is rejected
    OUT/skipped.jsonl        every sample that was skipped, and why
    OUT/skipped-00000.jsonl  those of one shard
"""

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from cm3.files import whole, write_whole
from cm3.hf.model_folder import check_files, find_model, image_tokenizer_name, load_image_tokenizer, read_config
from cm3.model.config import MAX_GRIDS
from cm3.tokens.templates import TEMPLATES
from cm3.tokens.text_tokenizer import FILE, TextTokenizer
from cm3.tokens.tokenizer_json import load_text
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.documents.sample import Columns, Skip
from train.documents.shard_files import layout, shard_facts
from train.documents.shards import NUM_SPECIAL, finish, save_text
from train.documents.sources import Source, open_source
from train.documents.worker import SKIPPED, PrepareOptions, ShardBuilder, rows_of
from train.runtime.config import changes
from train.runtime.workers import chunks_of, wait_for, work

RUN = "prepare.json"
USUAL = PrepareOptions()
CONTEXT = 4096  # default for the largest number of tokens in a document


class Tokenizers(NamedTuple):
    """The tokenizers of a run.

    Attributes:
        image: the image tokenizer.
        image_name: folder or name of the image tokenizer.
        text: the text tokenizer; None = it must be trained.
        vocab: layout of the ids; None = it depends on the text tokenizer.
        context: default for the largest number of tokens in a document.
    """

    image: ImageTokenizer
    image_name: str
    text: TextTokenizer | None = None
    vocab: Vocab | None = None
    context: int = CONTEXT


def load_tokenizers(options: PrepareOptions) -> Tokenizers:
    """Load the tokenizers that the options name.

    Raises:
        ValueError: one is missing, or options do not fit together.
    """
    if not options.model:
        name = options.image_tokenizer or "emoji"
        return Tokenizers(ImageTokenizer.from_pretrained(name), name)
    if options.image_tokenizer:
        raise ValueError(f"--model {options.model} brings its image tokenizer: leave out --image-tokenizer")
    folder = find_model(options.model)
    check_files(folder)
    config = read_config(folder)
    image = load_image_tokenizer(folder, config)
    name = image_tokenizer_name(folder, config)
    if options.max_tokens > config.max_position_embeddings:
        raise ValueError(
            f"--max-tokens {options.max_tokens} is more than the model's context of {config.max_position_embeddings}"
        )
    context = min(CONTEXT, config.max_position_embeddings)
    vocab = Vocab.from_config(config)
    return Tokenizers(image, name, load_text(folder, vocab), vocab, context)


def prepare(
    path: str | Path, out: Path, options: PrepareOptions = USUAL, processes: int = 1, rank: int = 0, world: int = 1
) -> dict[str, Any]:
    """Write the shards.

    Args:
        path: what train/documents/sources.py reads.
        out: folder of the shards. Shards of the same run that exist are kept.
        options: of the run.
        processes: number of processes that encode, of this rank.
        rank: of this process. Rank 0 also writes meta.json.
        world: number of ranks. Each writes every world-th shard.

    Returns:
        The content of meta.json; for ranks other than 0, the number of shards and seconds.

    Raises:
        ValueError: there is nothing to read, every sample was skipped, `out` holds shards of another run, or options
            do not fit together.
    """
    started = time.perf_counter()
    tokenizers = load_tokenizers(options)
    options = replace(options, max_tokens=options.max_tokens or tokenizers.context)
    check(options, tokenizers.image)
    columns = Columns(options.image_column, options.text_column)
    source = open_source(path, columns, options.format, options.samples)
    if Path(path).is_dir() and out.resolve().is_relative_to(Path(path).resolve()):
        raise ValueError(f"{out} is inside {path}, so it would be read as data: choose a folder outside")
    run = {
        "data": {"format": source.kind, "chunks": len(source), "listing": source.listing},
        "image_tokenizer": tokenizers.image.fingerprint(),
        "text_tokenizer": tokenizers.text.fingerprint() if tokenizers.text else "trained",
        "vocab": layout(tokenizers.vocab, tokenizers.image.grid) if tokenizers.vocab else "of the text tokenizer",
        "options": {
            key: value for key, value in asdict(options).items() if key not in ("workers", "model", "image_tokenizer")
        },
    }
    claim(out, run, first=rank == 0)
    text = text_tokenizer(source, out, options, tokenizers, first=rank == 0)
    grids = read_grids(options.grids, tokenizers.image.grid)
    vocab = tokenizers.vocab or Vocab(NUM_SPECIAL, len(text), tokenizers.image.num_codes, grids=grids)
    marks = {"image_tokenizer": run["image_tokenizer"], "text_tokenizer": text.fingerprint()}
    builder = ShardBuilder(source, out, options, vocab, tokenizers.image_name, marks)
    missing = [number for number in range(len(source)) if not done(out, number, marks)]
    mine = chunks_of(missing, rank, world)
    work(builder, mine, processes, show=rank == 0)
    if rank:
        return {"shards": len(mine), "seconds": round(time.perf_counter() - started, 1)}
    for number in missing:
        wait_for(partial(done, out, number, marks), train_shard(out, number))
    skips = write_skipped(source, out)
    facts = [shard_facts(train_shard(out, number)) for number in range(len(source))]
    seconds = time.perf_counter() - started
    fresh = sum(facts[number]["images"] for number in missing)
    meta = finish(
        out,
        text,
        vocab,
        tokenizers.image,
        images=sum(fact["images"] for fact in facts),
        skipped=dict(skips),
        seconds=round(seconds, 1),
        images_per_second=round(fresh / seconds, 2),
        source=str(path),
        image_tokenizer_name=tokenizers.image_name,
        config=asdict(options),
    )
    if not meta["documents"]:
        if meta["splits"]["held_out"]["documents"]:
            raise ValueError(f"all samples of {path} were held out: lower --held-out {options.held_out}")
        raise ValueError(f"{path}: every sample was skipped: {examples(out)}")
    return meta


def read_grids(text: str, own: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Parse --grids.

    Args:
        text: such as "6x10 10x6".
        own: grid of the image tokenizer.

    Raises:
        ValueError: it cannot be read, or repeats a grid, or has more than MAX_GRIDS.
    """
    found = [re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", word) for word in text.split()]
    grids = tuple((int(match[1]), int(match[2])) for match in found if match)
    if len({*grids, own}) != len(found) + 1 or len(grids) > MAX_GRIDS:
        raise ValueError(
            f"--grids {text!r}: want up to {MAX_GRIDS} of rows and columns, such as 6x10, each once and none "
            f"the image tokenizer's own {own[0]}x{own[1]}"
        )
    return grids


def check(options: PrepareOptions, image: ImageTokenizer) -> None:
    """Check that the options fit together.

    Raises:
        ValueError: they do not.
    """
    if options.model and options.grids:
        raise ValueError(f"--model {options.model} brings its grids: leave out --grids")
    read_grids(options.grids, image.grid)
    length = image.grid[0] * image.grid[1] + 2
    if length + 2 > options.max_tokens:
        raise ValueError(
            f"--max-tokens {options.max_tokens}: an image of {image.grid[0]} x {image.grid[1]} codes "
            f"alone takes {length + 2}"
        )
    if not 0 <= options.held_out < 1:
        raise ValueError(f"--held-out {options.held_out}: want a share from 0 to less than 1")
    if options.language not in TEMPLATES["caption"]:
        raise ValueError(f"--language {options.language!r}: want one of {', '.join(TEMPLATES['caption'])}")
    for name in ("samples", "batch", "workers", "text_sample"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}: want at least 1")


def claim(out: Path, run: dict[str, Any], first: bool) -> None:
    """Write OUT/prepare.json, or check it.

    Args:
        out: folder of the shards.
        run: the settings on which the shards depend.
        first: whether this is rank 0. The other ranks wait for the file.

    Raises:
        ValueError: `out` belongs to another run.
    """
    path = out / RUN
    if first and not path.exists():
        if out.is_dir() and any(out.glob("*.safetensors")):
            raise ValueError(f"{out} holds shards that train.prepare did not write: delete it or choose another one")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(run, indent=1, ensure_ascii=False) + "\n", errors="backslashreplace")
    wait_for(path.exists, path)
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete {out} or choose another one") from error
    ours, theirs = ({**one, **one.get("options", {}), "options": None} for one in (run, before))
    if other := changes(theirs, ours):
        raise ValueError(f"{out} holds shards of another run ({other}): delete it or choose another one")


def text_tokenizer(source: Source, out: Path, options: PrepareOptions, given: Tokenizers, first: bool) -> TextTokenizer:
    """Return the text tokenizer of the run. Rank 0 trains it and writes it to `out`; the others wait for it.

    Raises:
        ValueError: every sample was skipped.
    """
    if first and not (out / FILE).exists():
        save_text(given.text or train_text(source, out, options), out)
    wait_for((out / FILE).exists, out / FILE)
    return TextTokenizer.load(out)


def train_text(source: Source, out: Path, options: PrepareOptions) -> TextTokenizer:
    """Train the text tokenizer on texts from all chunks, in random order."""
    skips, usable = list(source.skipped), 0

    def texts() -> Iterator[str]:
        nonlocal usable
        yield from TEMPLATES["caption"].values()
        count = 0
        for number in sorted(range(len(source)), key=lambda number: hashlib.sha256(b"%d" % number).digest()):
            for record in source.read(number):
                if isinstance(record, Skip):
                    skips.extend([record] if len(skips) < 3 else [])
                    continue
                usable += 1
                for piece in record.pieces:
                    if isinstance(piece, str):
                        yield piece
                        count += 1
                if count >= options.text_sample:
                    return

    text = TextTokenizer.train(texts(), options.text_vocab)
    if not usable:
        (out / RUN).unlink()
        if not any(out.iterdir()):
            out.rmdir()
        raise ValueError("every sample was skipped" + "".join(f"; {skip.name}: {skip.reason}" for skip in skips[:3]))
    return text


def train_shard(out: Path, number: int) -> Path:
    """Return the path of the training shard of a chunk."""
    return out / f"train-{number:05}.safetensors"


def done(out: Path, number: int, marks: dict[str, str]) -> bool:
    """Return whether the shard of a chunk is complete.

    Raises:
        ValueError: other tokenizers made it.
    """
    if not train_shard(out, number).exists():
        return False
    try:
        facts = shard_facts(train_shard(out, number))
    except ValueError:  # damaged: write it anew
        return False
    if other := [key for key, mark in marks.items() if facts.get(key) != mark]:
        raise ValueError(
            f"{train_shard(out, number)} was made with another {other[0].replace('_', ' ')} ({facts.get(other[0])}, "
            f"now {marks[other[0]]}): delete {out} or choose another one"
        )
    return True


def write_skipped(source: Source, out: Path) -> Counter:
    """Write OUT/skipped.jsonl. Returns the number of skipped samples by kind, the most frequent first."""
    counts = Counter(skip.kind for skip in source.skipped)
    with (
        whole(out / f"{SKIPPED}.jsonl", f"{SKIPPED}.unfinished") as unfinished,
        unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(rows_of(source.skipped))
        for number in range(len(source)):
            if (part := out / f"{SKIPPED}-{number:05}.jsonl").exists():
                file.write(part.read_text(encoding="utf-8"))
            counts.update(shard_facts(train_shard(out, number))["skipped"])
    return Counter(dict(counts.most_common()))


def examples(out: Path, count: int = 3) -> str:
    """Return the first skipped samples, for a message."""
    with (out / f"{SKIPPED}.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
    return "; ".join(f"{row['name']}: {row['reason']}" for row in rows)


def main(
    path: Annotated[Path, typer.Argument(metavar="SOURCE", help="a folder or a file; see train/documents/sources.py")],
    out: Annotated[Path, typer.Option(help="folder of the token shards")] = Path("data/mine"),
    image_tokenizer: Annotated[str, typer.Option(help="folder or name; default: emoji")] = "",
    model: Annotated[str, typer.Option(help="model to fine-tune; its tokenizers and vocabulary are used")] = "",
    format: Annotated[str, typer.Option(help="auto, folder, tar, jsonl, csv, parquet or datasets")] = "auto",
    image_column: Annotated[str, typer.Option(help="column of a table; default: filepath, image, path, ...")] = "",
    text_column: Annotated[str, typer.Option(help="column of a table; default: title, caption, text, ...")] = "",
    language: Annotated[str, typer.Option(help="of the caption prompt: en or ar")] = "en",
    source: Annotated[str, typer.Option(help="recorded for samples that do not name one")] = "",
    licence: Annotated[str, typer.Option(help="recorded for samples that do not name one")] = "",
    owner: Annotated[str, typer.Option(help="recorded for samples that do not name one")] = "",
    held_out: Annotated[float, typer.Option(help="share of the held-out split")] = PrepareOptions.held_out,
    max_tokens: Annotated[
        int, typer.Option(help="largest number of tokens in a document; 0 = the model's context, or 4096")
    ] = PrepareOptions.max_tokens,
    samples: Annotated[int, typer.Option(help="largest number in a shard")] = PrepareOptions.samples,
    text_vocab: Annotated[
        int, typer.Option(help="largest number of ids of the text tokenizer")
    ] = PrepareOptions.text_vocab,
    text_sample: Annotated[
        int, typer.Option(help="largest number of texts to train it on")
    ] = PrepareOptions.text_sample,
    batch: Annotated[int, typer.Option(help="samples that are encoded together")] = PrepareOptions.batch,
    workers: Annotated[int, typer.Option(help="threads of each process that decode images")] = PrepareOptions.workers,
    processes: Annotated[int, typer.Option(min=1, help="number of processes that encode, of this rank")] = 1,
    grids: Annotated[str, typer.Option(help='further grids, rows x columns: "6x10 10x6"')] = PrepareOptions.grids,
) -> None:
    options = PrepareOptions(
        image_tokenizer,
        model,
        text_vocab,
        text_sample,
        language,
        held_out,
        max_tokens,
        samples,
        batch,
        workers,
        grids,
        source,
        licence,
        owner,
        format,
        image_column,
        text_column,
    )
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        meta = prepare(path, out, options, processes, rank, world)
    except (OSError, ValueError) as error:
        raise SystemExit(f"prepare: {error}") from None
    if rank:
        return
    for kind, count in meta["skipped"].items():
        print(f"skipped {count}: {kind}")
    skipped = sum(meta["skipped"].values())
    named = f" (named in {out / SKIPPED}.jsonl)" if skipped else ""
    print(
        f"{meta['images']} images, {meta['documents']} documents, {meta['tokens']} tokens, "
        f"{meta['splits']['held_out']['documents']} documents held out, {skipped} skipped{named}, "
        f"{meta['images_per_second']} images/s"
    )


if __name__ == "__main__":
    typer.run(main)
