"""Instruction tuning: one mix of tasks on scenes with exact truth, and the documents that the model already knows.

    python -m train.build_instructions --config build_instructions --start runs/lm/model --known data/emoji-tokens

The tasks are those of train/scenes/tasks.py. KNOWN are token shards of train.tokenize_emoji made with the same model's
tokenizers: the tuned model must not forget them. OUT receives what train/documents/shards.py
describes; its held-out documents show unseen combinations (train/scenes/scene.py). Then:

    python -m train.lm --config instruct --out runs/instruct

Source: CM3leon (arXiv 2309.02591), section 4; datasets are sampled up or down within thresholds, as there.
"""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track

from cm3.pipeline import CM3
from cm3.tokens.document import Document, Image, Text
from cm3.tokens.templates import LANGUAGES
from train.documents.shards import Shards, ShardWriter, clear, finish, questions
from train.emoji.dataset import MANIFEST, read_manifest
from train.runtime import config as configs
from train.scenes.scene import THINGS
from train.scenes.studio import Studio, encode, read_things
from train.scenes.tasks import EDITS, TASKS, TaskDocument


@dataclass(frozen=True)
class InstructionsConfig:
    """What goes into the shards.

    Attributes:
        documents: new ones, of all tasks.
        edits: edits as a share of those; 0 = as train/scenes/tasks.py has it.
        held_out: documents of each task with unseen combinations.
        known: documents of what the model knows already, as a share of all.
        drawn: drawings as a share of those, the others ask.
        up: a set of documents is repeated at most so often.
        down: at least such a share of it is taken.
        things: English names of what scenes are made of.
        aligned: share of scenes whose things are aligned with the cells of codes, and are thus spelled with the same
            codes wherever they stand.
        quarters: share of those whose things stand in the corners of the image's quarters.
        white: share of scenes on a white ground.
        chunk: new documents that are made together, and a shard.
        workers: processes.
        seed: of everything random.
    """

    documents: int = 80_000
    edits: float = 0.0
    held_out: int = 40
    known: float = 0.4
    drawn: float = 0.5
    up: float = 3.0
    down: float = 0.3
    things: tuple[str, ...] = THINGS
    aligned: float = 0.0
    quarters: float = 0.0
    white: float = 0.6
    chunk: int = 2000
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("edits", "known"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be a share, 0 or more and less than 1")
        for name in ("drawn", "aligned", "quarters", "white"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be a share, 0 to 1")


def task_shares(edits: float) -> dict[str, float]:
    """Each task's share of the new documents, where edits have this share of them together; 0 = that of TASKS."""
    usual = sum(TASKS[name].share for name in EDITS)
    return {
        name: task.share * ((edits / usual if name in EDITS else (1 - edits) / (1 - usual)) if edits else 1)
        for name, task in TASKS.items()
    }


def sampling_ratios(sizes: dict[str, int], wanted: dict[str, float], down: float, up: float) -> dict[str, float]:
    """How often each document of a set is taken, so that the sets come as near to the wanted numbers as the thresholds
    allow (CM3leon 4: datasets are sampled down to 0.3 and up to 3 times their size)."""
    return {name: min(max(wanted[name] / size, down), up) for name, size in sizes.items() if size}


def taken(size: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Numbers of the documents of a set, each as often as the ratio says, in order."""
    whole, rest = divmod(ratio, 1)
    times = int(whole) + (rng.permutation(size) < round(rest * size))
    return np.repeat(np.arange(size), times)


def store(writer: ShardWriter, made: TaskDocument, codes: Sequence[np.ndarray]) -> None:
    images = [Image(torch.from_numpy(one)) for one in codes]
    writer.add(questions(made.asked, images[-1]) if made.asked else Document((Text(made.words), *images)))


def write_chunk(
    data: Path, start: str, out: Path, split: str, number: int, tasks: Sequence[str], config: InstructionsConfig
) -> dict[str, int]:
    """One shard of new documents, of these tasks in order. Returns how many of each there are."""
    model, studio, licences = workshop(data, start, split != "train", config)
    rng = np.random.default_rng((config.seed, split != "train", number))
    writer = ShardWriter(model.text_tokenizer, model.vocab)
    for begin in range(0, len(tasks), 64):
        some = tasks[begin : begin + 64]
        pairs = [studio.make(task, LANGUAGES[rng.integers(2)], rng) for task in some]
        codes = encode([made for made, _ in pairs], model.image_tokenizer)
        for i, (task, (made, scene), rows) in enumerate(zip(some, pairs, codes, strict=True)):
            parents = [] if "sign" in task else [one.thing.key for one in scene.placed]
            licence = " AND ".join(sorted({licences.get(key, "") for key in parents}))
            name = f"{split}-{number}-{begin + i}"
            writer.sample(name=name, task=task, parents=parents, licence=licence, documents=1)
            store(writer, made, rows)
    writer.save(out, split, number)
    return dict(Counter(tasks))


@lru_cache(maxsize=2)
def workshop(data: Path, start: str, novel: bool, config: InstructionsConfig) -> tuple[CM3, Studio, dict[str, str]]:
    """The model whose tokenizers are taken, the studio, and the licence of each drawing; once a process."""
    torch.set_num_threads(1)
    model = CM3.from_pretrained(start, device="cpu")
    size, cells = model.image_tokenizer.size[0], model.grid[0]
    things = read_things(data, "train")
    studio = Studio.of(things, config.things, size, novel, config.aligned, cells, config.white, config.quarters)
    rows = read_manifest(data) if (data / MANIFEST).is_file() else []
    return model, studio, {row["key"]: row["licence"] for row in rows}


def known_documents(known: Path, model: CM3, out: Path, config: InstructionsConfig, first: int) -> dict[str, int]:
    """Shards of what the model knows already, sampled down or up, and their held-out documents. Returns the number of
    each kind."""
    counts: dict[str, int] = {}
    for split, number in (("train", first), ("held_out", 1)):
        shards = Shards(known, split)
        if shards.text_tokenizer().tokenizer.to_str() != model.text_tokenizer.tokenizer.to_str():
            raise ValueError(f"{known} was made with another text tokenizer: make it with train.tokenize_emoji --start")
        shards.check_image_tokenizer(model.image_tokenizer)
        asks = (shards.spans[:, :, 1] > 0).any(1)
        sets = {"known draw": np.flatnonzero(~asks), "known ask": np.flatnonzero(asks)}
        sizes = {name: len(numbers) for name, numbers in sets.items()}
        total = config.documents * config.known / (1 - config.known)
        ratios = dict.fromkeys(sizes, 1.0)
        if split == "train":
            wanted = {"known draw": total * config.drawn, "known ask": total * (1 - config.drawn)}
            ratios = sampling_ratios(sizes, wanted, config.down, config.up)
        rng = np.random.default_rng((config.seed, 2, number))
        chosen = np.concatenate([sets[name][taken(sizes[name], ratios[name], rng)] for name in ratios])
        writer = ShardWriter(model.text_tokenizer, model.vocab)
        rows: dict[str, int] = {}
        for i in track(np.sort(chosen).tolist(), f"known, {split}"):
            document, facts = shards.document(i), shards.sample(i)
            if facts.get("name") not in rows:
                rows[facts.get("name", "")] = len(rows)
                writer.sample(**facts)
            writer.add_ids(*document)
        writer.save(out, split, number)
        if split == "train":
            counts = {name: round(sizes[name] * ratio) for name, ratio in ratios.items()}
    return counts


def build(data: Path, start: str, known: Path | None, out: Path, config: InstructionsConfig) -> dict[str, Any]:
    """Everything above in order. Returns the content of meta.json. Raises ValueError for shards of another model."""
    model = CM3.from_pretrained(start, device="cpu")
    clear(out)
    rng = np.random.default_rng((config.seed, 3))
    shares = task_shares(config.edits)
    tasks = rng.permutation([name for name, share in shares.items() for _ in range(round(share * config.documents))])
    chunks = [tasks[i : i + config.chunk].tolist() for i in range(0, len(tasks), config.chunk)]
    novel = [name for name in TASKS for _ in range(config.held_out)]
    jobs = [("train", number, chunk) for number, chunk in enumerate(chunks)] + [("held_out", 0, novel)]
    context = get_context("spawn")  # torch's threads do not outlive a fork
    with ProcessPoolExecutor(config.workers, context) as pool:
        futures = [
            pool.submit(write_chunk, data, start, out, split, number, chunk, config) for split, number, chunk in jobs
        ]
        made = [future.result() for future in track(futures, "new documents")]
    counts = sum((Counter(one) for one in made[:-1]), Counter[str]())
    if known:
        counts.update(known_documents(known, model, out, config, len(chunks)))
    return finish(
        out,
        model.text_tokenizer,
        model.vocab,
        model.image_tokenizer,
        tasks=dict(counts),
        start=start,
        config=asdict(config),
    )


def main(
    data: Annotated[Path, typer.Option(help="folder of the data set")] = Path("data/emoji"),
    start: Annotated[str, typer.Option(help="model that will be tuned: folder or name")] = "emoji",
    known: Annotated[Path | None, typer.Option(help="token shards of what it knows already")] = None,
    out: Annotated[Path, typer.Option(help="folder of the token shards")] = Path("data/emoji-instruct"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
) -> None:
    try:
        meta = build(data, start, known, out, configs.load(InstructionsConfig, config, overrides))
    except (OSError, ValueError) as error:
        raise SystemExit(f"build_instructions: {error}") from None
    print(json.dumps({key: meta[key] for key in ("documents", "tokens", "tasks")}))


if __name__ == "__main__":
    typer.run(main)
