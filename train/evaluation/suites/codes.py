"""Compare the codes of image tokenizers: reconstruction, linear probes, and a small language model.

    python -m train.evaluate codes FOLDER... --data data/emoji --out runs/compare --seed 0

Each tokenizer adds a line to OUT/rows.jsonl; tokenizers that have one are not measured again. The language model is
trained on the everyday concepts (train.tokenize_emoji.EVERYDAY) of the training split, without one design of each
concept that has four or more. It is evaluated on captions of those images ("held-out design") and of the held-out
pairs.
"""

import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from cm3.pipeline import CM3
from cm3.tokens.document import Image as CodeImage
from cm3.tokens.templates import TEMPLATES
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.documents.shards import NUM_SPECIAL, Shards, ShardWriter, Target, clear, finish, questions
from train.emoji.dataset import EVERYDAY, read_split
from train.emoji.packages import STYLES
from train.emoji.phrases import Facts
from train.evaluation.concepts import SPLIT_FOLDERS
from train.evaluation.options import DATA, Data, Out
from train.evaluation.probe import across_groups, bag_of_codes, code_vectors
from train.images.codes import encode_views
from train.images.loader import to_pixels
from train.images.views import PLAIN, Augmentation, View, place
from train.language.config import LMConfig
from train.language.held_out import held_out_loss
from train.language.loss import LMLearner
from train.language.objective import Objective
from train.language.packing import PackedSequences
from train.language.run import train as train_lm
from train.runtime.config import override
from train.vq.learner import evaluate

DESIGNS = {style.word: style.design for style in STYLES}
MODEL = dict(hidden_size=192, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512)


@dataclass(frozen=True)
class CodesConfig:
    """The settings of a comparison.

    Attributes:
        seed: of the language model. The views and the held-out images do not depend on it.
        steps: of the language model; 0 = no language model.
        batch_tokens: tokens in a step.
        views: number of views of each image, of which the first is not augmented.
        model: fields of CM3Config that replace the preset's.
    """

    seed: int = 0
    steps: int = 450
    batch_tokens: int = 4096
    views: int = 8
    model: dict[str, Any] | None = None


@dataclass(frozen=True)
class Drawings:
    """Drawings with their facts.

    Attributes:
        drawings: in RGBa.
        rows: facts of each drawing.
    """

    drawings: list[Image.Image]
    rows: list[Facts]

    def where(self, keep: list[bool]) -> "Drawings":
        """Return some of the drawings."""
        pairs = [pair for pair, kept in zip(zip(self.drawings, self.rows, strict=True), keep, strict=True) if kept]
        return Drawings([drawing for drawing, _ in pairs], [row for _, row in pairs])

    def designs(self) -> list[str]:
        """Return the design of each drawing."""
        return [DESIGNS[row["style"]] for row in self.rows]

    def plain(self, size: int) -> list[Image.Image]:
        """Return images of the drawings without augmentation."""
        return [Image.fromarray(place(drawing, PLAIN, size)) for drawing in self.drawings]


def read(folder: Path) -> Drawings:
    """Read all drawings of a split."""
    samples = [(drawing, row) for _, drawing, row in read_split(folder)]
    return Drawings([drawing for drawing, _ in samples], [row for _, row in samples])


def everyday(images: Drawings) -> Drawings:
    """Return the drawings of everyday concepts."""
    return images.where([row["subgroup"] in EVERYDAY for row in images.rows])


def designs_of(images: Drawings) -> dict[str, set[str]]:
    """Return the designs of each concept."""
    out: dict[str, set[str]] = defaultdict(set)
    for row, design in zip(images.rows, images.designs(), strict=True):
        out[row["code"]].add(design)
    return out


def held_out_designs(images: Drawings) -> set[tuple[str, str]]:
    """Return (concept, design): one design of each concept that has four or more. They are the same each time."""
    rng = np.random.default_rng(0)
    many = {code: sorted(designs) for code, designs in sorted(designs_of(images).items()) if len(designs) >= 4}
    return {(code, designs[rng.integers(len(designs))]) for code, designs in many.items()}


def reconstruction(tokenizer: ImageTokenizer, images: Drawings) -> dict[str, float]:
    """Measure PSNR in dB and codebook usage."""
    figures, _ = evaluate(tokenizer.model, to_pixels([np.asarray(p) for p in images.plain(tokenizer.size[0])]))
    return {"images": len(images.rows), **figures}


def probes(tokenizer: ImageTokenizer, images: Drawings) -> dict[str, Any]:
    """Measure linear probes that predict concept and category from codes, with cross-validation over designs.

    Only concepts with three or more designs are used.
    """
    designs = designs_of(images)
    images = images.where([len(designs[row["code"]]) >= 3 for row in images.rows])
    codes = encode_views(images.drawings, [[PLAIN]] * len(images.rows), tokenizer)[:, 0]
    labels = {"concept": [row["code"] for row in images.rows], "category": [row["subgroup"] for row in images.rows]}
    features = {
        "bag of codes": bag_of_codes(codes, tokenizer.num_codes),
        "code vectors": code_vectors(codes, tokenizer.model.quantize.codebook().cpu()),
    }
    out: dict[str, Any] = {"images": len(codes)} | {kind: len(set(values)) for kind, values in labels.items()}
    for name, values in features.items():
        out[name] = {kind: probe._asdict() for kind, probe in across_groups(values, labels, images.designs()).items()}
    return out


def write_documents(tokenizer: ImageTokenizer, text: TextTokenizer, images: Drawings, views: int, out: Path) -> None:
    """Write token shards: for each view of each image a document with a question for its English name."""
    rng, augmentation, size = np.random.default_rng(0), Augmentation(), tokenizer.size[0]
    placed: list[list[View]] = [
        [PLAIN, *(augmentation.sample(rng, size) for _ in range(views - 1))] for _ in images.rows
    ]
    vocab = Vocab(NUM_SPECIAL, len(text), tokenizer.num_codes)
    writer = ShardWriter(text, vocab)
    for row, codes in zip(images.rows, encode_views(images.drawings, placed, tokenizer), strict=True):
        writer.sample(name=f"{row['style']} {row['code']}", documents=views)
        for grid in codes:
            asked = Target("caption", TEMPLATES["caption"]["en"], row["name"]["en"])
            writer.add(questions([asked], CodeImage(grid)))
    clear(out)
    writer.save(out)
    finish(out, text, vocab, tokenizer, views=views)


def row_length(tokenizer: ImageTokenizer) -> int:
    """Return a sequence length for a few documents."""
    rows, columns = tokenizer.grid
    return max(256, 2 * (rows * columns + 64))


def answer_loss(model: CM3, folder: Path) -> float:
    """Compute the mean cross-entropy of the answers in a folder of token shards, in nats."""
    rows = PackedSequences(Shards(folder), model.vocab, Objective().plain(), row_length(model.image_tokenizer), 0)
    learner = LMLearner(model.model)
    losses = held_out_loss(learner, rows, len(rows.shards), 16, "fp32", model.model.device)
    model.model.eval()
    return losses["answer"]


def captioning(
    name: str, tokenizer: ImageTokenizer, train: Drawings, unseen: Drawings, out: Path, config: CodesConfig
) -> dict[str, Any]:
    """Train a small captioning model on the codes, and evaluate it.

    Args:
        name: folder or name of the tokenizer.
        tokenizer: the same, loaded.
        train: everyday images of the training split.
        unseen: everyday images of the held-out pairs.
        out: folder of the token shards and of the language model's run.
        config: of the comparison.

    Returns:
        The share of captions that are the name, and the loss of the names in nats.
    """
    held = held_out_designs(train)
    is_held = [(row["code"], design) in held for row, design in zip(train.rows, train.designs(), strict=True)]
    seen = train.where([not kept for kept in is_held])
    tests = {"held-out design": train.where(is_held), "held_out_pairs": unseen}
    words = [TEMPLATES["caption"]["en"], *sorted({row["name"]["en"] for row in train.rows})]
    text = TextTokenizer.train(words, 2048, min_frequency=1)  # nearly an id a word
    write_documents(tokenizer, text, seen, config.views, out / "tokens")
    row = row_length(tokenizer)
    settings = override(
        LMConfig(),
        {
            "data.folder": str(out / "tokens"),
            "image_tokenizer": name,
            "model": {**(config.model or MODEL), "max_position_embeddings": row},
            "steps": config.steps,
            "data.seq_len": row,
            "batch_tokens": max(1, config.batch_tokens // row) * row,
            "seed": config.seed,
            "checkpoint.every": 500,
            "samples.every": 0,
            "samples.prompts": (),
        },
    )
    started = time.perf_counter()
    model = CM3.from_pretrained(train_lm(settings, out / "lm"))
    result: dict[str, Any] = {
        "documents": len(seen.rows) * config.views,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "training_seconds": round(time.perf_counter() - started, 1),
    }
    for split, images in tests.items():
        if not images.rows:
            continue
        result[split] = {"images": len(images.rows), "exact": exact_match(model, images)}
        write_documents(tokenizer, text, images, 1, out / split.replace(" ", "_"))
        result[split]["loss"] = answer_loss(model, out / split.replace(" ", "_"))
    return result


def exact_match(model: CM3, images: Drawings) -> float:
    """Return the share of greedy captions that are the English name, ignoring case."""
    said = model.caption(images.plain(model.image_tokenizer.size[0]))
    names = [row["name"]["en"] for row in images.rows]
    return float(np.mean([a.strip().casefold() == b.casefold() for a, b in zip(said, names, strict=True)]))


def compare(names: list[str], data: Path, out: Path, config: CodesConfig) -> list[dict[str, Any]]:
    """Measure the tokenizers that OUT/rows.jsonl lacks. Returns the rows of all."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "rows.jsonl"
    train, all_unseen = read(data / "train"), read(data / SPLIT_FOLDERS["held_out_pairs"])
    usual, unseen = everyday(train), everyday(all_unseen)
    rows = []
    for name in names:
        started, tokenizer = time.perf_counter(), ImageTokenizer.from_pretrained(name)
        identity = {"tokenizer": name, "fingerprint": tokenizer.fingerprint(), **asdict(config)}
        if found := [row for row in read_rows(file) if identity.items() <= row.items()]:
            rows.append(found[0])
            continue
        row = identity | {
            "reconstruction": reconstruction(tokenizer, all_unseen),
            "probe": probes(tokenizer, Drawings(usual.drawings + unseen.drawings, usual.rows + unseen.rows)),
        }
        if config.steps:
            folder = out / f"{identity['fingerprint']}-{config.seed}-{config.steps}"
            row["captions"] = captioning(name, tokenizer, usual, unseen, folder, config)
        rows.append(row | {"seconds": round(time.perf_counter() - started, 1)})
        with file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(rows[-1]) + "\n")
    return rows


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows that exist."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def codes_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| tokenizer | PSNR | codebook usage | concept, bag | concept, vectors | category, bag | category, vectors "
        "| caption, held-out design | nats | caption, held-out pair | nats |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        rec, probe = row["reconstruction"], row["probe"]
        cells = [row["tokenizer"], f"{rec['psnr']:.2f} dB", f"{rec['codebook_usage']:.1%}"]
        cells += [
            f"{probe[feature][kind]['top1']:.1%}"
            for kind in ("concept", "category")
            for feature in ("bag of codes", "code vectors")
        ]
        for split in ("held-out design", "held_out_pairs"):
            figures = row.get("captions", {}).get(split)
            cells += [f"{figures['exact']:.1%}", f"{figures['loss']:.3f}"] if figures else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    tokenizers: Annotated[list[str], typer.Argument(help="folders or names")],
    data: Data = DATA,
    out: Out = Path("runs/compare"),
    seed: Annotated[int, typer.Option(help="seed of the language model")] = 0,
    steps: Annotated[int, typer.Option(help="steps of the language model; 0 = no language model")] = CodesConfig.steps,
    views: Annotated[int, typer.Option(help="number of views of each image")] = CodesConfig.views,
) -> None:
    rows = compare(tokenizers, data, out, CodesConfig(seed, steps, views=views))
    print(codes_table(rows))
