"""Put the trained model into the package: weights in 16-bit floats, card, attribution, lexicon, checksums.

    python -m train.recipes.emoji.package --runs runs --documents data/emoji-documents --data data/emoji

Writes cm3/pretrained/emoji and tokenizer_image/pretrained/emoji. Nothing is written before everything has been read.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file

from cm3.hf.model_folder import read_config, write_checksums
from cm3.hf.remote_code import write_processor
from cm3.tasks.confidence import CALIBRATION
from cm3.tasks.known_words import KnownWords, words_of
from cm3.tasks.lexicon import LEXICON
from cm3.tokens.document import Text
from tokenizer_image import ImageTokenizer
from tokenizer_image.checkpoint import make_readable
from train.recipes.emoji.dataset import EXTRA, attribution, read_manifest
from train.recipes.emoji.documents import Builder, DocumentsConfig
from train.recipes.emoji.evaluate import SUITES
from train.recipes.emoji.packages import LANGUAGES
from train.recipes.emoji.shelf import Shelf
from train.recipes.emoji.world import World

ROOT = Path(__file__).parents[3]
LIMIT = 48_000_000  # bytes of embedded weights
REQUESTS = 4000  # and as many instructions, whose words the model knows
COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

CARD = """# {name}: the embedded model of cm3

A small model that plans, then draws. It draws, edits, inpaints and captions emoji at {side} x {side} pixels and answers
questions about them. It knows {concepts} concepts, alone and in scenes of up to four.

- language model: {lm_parameters:.1f}M parameters, {layers} layers, width {width}
- vocabulary: {vocabulary} ids, of them {text} text and {codes} image tokens
- image tokenizer: {vq_parameters:.1f}M parameters, {codes} codes, {grid[0]} x {grid[1]} an image, {psnr:.1f} dB PSNR on
  held-out concept-style pairs
- prompts by name and captions in {languages} languages, questions and long captions in English and Arabic; names in
  further languages through a lexicon of {lexicon} names
- weights are stored in 16-bit floats and computed in 32-bit

## Limitations

The model knows no photographs, no people, and nothing outside its concepts. It writes no prose; words in images have
three to five letters. Most images that it generates are near copies of training images: {memorised} % of the drawings
by name and style have 95 % of the codes of a training image.

## Evaluation

docs/results.md in the repository has the tables and the commands. `evaluation.json` in this folder holds the figures.

## Data

{images} drawings of the training split ({styles}), and {documents} documents made of them, {tokens} tokens: {kinds}.
Licences: see ATTRIBUTION.md. Held out: {held_out} concepts that people seldom name, one style of each of some concepts
(held-out concept-style pairs), and a tenth of the combinations of a thing with a colour, of two things in a scene, and
of a language with a name.

## Training

Device: {device}. Image tokenizer: {vq_hours:.1f} hours, {vq_steps} steps of {vq_batch} images, then its decoder alone,
{decoder_hours:.1f} hours, {decoder_steps} steps. Language model: {lm_hours:.1f} hours, {lm_steps} steps of {lm_batch}
tokens, seed {seed}. {note}

train/recipes/emoji/make.sh in the repository is the whole way from nothing.
"""

TOKENIZER_CARD = """# {name}: the image tokenizer of the embedded model

{side} x {side} pixels to {grid[0]} x {grid[1]} codes out of {codes}, each of {dim} dimensions; {parameters:.1f}M
parameters. Tiles of 128 x 128 pixels are encoded and decoded by themselves, so that a thing has the same codes alone
and in a scene. Weights are stored in 16-bit floats and computed in 32-bit.

Trained on emoji of six styles (no people, no flags; licences: see ATTRIBUTION.md): {steps} steps of {batch} images of
128 pixels, {hours:.1f} hours; then a new decoder alone, on canvases of {side} pixels, {decoder_steps} steps,
{decoder_hours:.1f} hours. Device: {device}.

Held-out concept-style pairs after encoding and decoding at {side} pixels: {psnr:.1f} dB PSNR. docs/results.md in the
repository has more figures.
"""


@dataclass(frozen=True)
class Sources:
    """The folders that the model comes from.

    Attributes:
        lm: run of train.lm.
        image_tokenizer: run of train.image_tokenizer.
        decoder: run of its decoder alone, whose weights are taken.
        evaluation: output of train.recipes.emoji.evaluate, every suite.
        documents: of build_documents.
        data: of build_dataset and build_lexicon.
    """

    lm: Path
    image_tokenizer: Path
    decoder: Path
    evaluation: Path
    documents: Path
    data: Path


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def hours(log: Path, batch: int, speed: str) -> float:
    """Time spent in steps, from the speeds in a run's log.

    Args:
        log: log.jsonl of the run.
        batch: samples or tokens of a step.
        speed: the field with the samples or tokens per second.
    """
    rows = [json.loads(line) for line in log.open()]
    rows = [row for row in rows if speed in row]
    steps = [row["step"] for row in rows]
    gaps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    return sum(max(gap, 0) * batch / row[speed] for gap, row in zip(gaps, rows, strict=True)) / 3600


def halve(source: Path, target: Path) -> int:
    """Copy a safetensors file with its floats as 16-bit floats. Returns the number of parameters.

    Raises:
        ValueError: a value does not fit into 16 bits.
    """
    weights = load_file(source)
    small = {key: value.to(torch.float16) if value.is_floating_point() else value for key, value in weights.items()}
    if bad := [key for key, value in small.items() if not value.isfinite().all()]:
        raise ValueError(f"{source}: {bad[0]} does not fit into 16 bits")
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(small, target, metadata={"format": "pt"})
    make_readable(target)
    return sum(value.numel() for value in weights.values())


def embedded(root: Path) -> int:
    """Bytes of all embedded weights.

    Raises:
        ValueError: more than LIMIT.
    """
    size = sum(path.stat().st_size for path in root.glob("*/pretrained/**/*.safetensors"))
    if size > LIMIT:
        raise ValueError(f"the weights take {size:,} bytes; at most {LIMIT:,} are embedded")
    return size


def known_words(data: Path) -> KnownWords:
    """The words that prompts and instructions were trained with, without the typing mistakes: those of all names, and
    those that many requests have.

    Args:
        data: of build_dataset.
    """
    world, shelf = World.read(data), Shelf.read(data, "train")
    builder, rng = Builder(world, shelf, None, DocumentsConfig()), np.random.default_rng(0)
    counts = Counter[str]()
    for _ in range(REQUESTS):
        for made in (builder.request(rng), builder.instruct(rng)):
            counts.update(word for item in made if isinstance(item, Text) for word in set(words_of(item.text)))
    often = [word for word, count in counts.items() if count >= max(2, REQUESTS // 1000)]
    names = [name for one in world.concepts.values() for name in (*one.names.values(), *one.others)]
    return KnownWords([*often, *names])


def facts_of(sources: Sources) -> dict[str, Any]:
    """What both cards say."""
    vq, decoder, lm = (read_json(run / "config.json") for run in (sources.image_tokenizer, sources.decoder, sources.lm))
    tokenizer = ImageTokenizer.from_pretrained(sources.decoder / "model").model
    meta, world = read_json(sources.documents / "meta.json"), World.read(sources.data)
    data = read_json(sources.data / "data.json")
    evaluation = {suite: read_json(sources.evaluation / f"{suite}.json") for suite in ("ceiling", *SUITES)}
    model = read_json(sources.lm / "model" / "config.json")
    speed = "images_per_second"
    return {
        "evaluation": evaluation,
        "model": model,
        "side": tokenizer.config.resolution,
        "grid": tokenizer.config.grid,
        "codes": tokenizer.config.n_embed,
        "dim": tokenizer.config.embed_dim,
        "vq_parameters": sum(map(torch.numel, tokenizer.parameters())) / 1e6,
        "psnr": evaluation["ceiling"]["psnr 256 held_out_pairs"],
        "memorised": evaluation["drawings"]["by plan, 256 px"]["memorised"],
        "concepts": len(world.concepts),
        "held_out": len(world.held_out),
        "languages": len(LANGUAGES),
        "lexicon": len((sources.data / LEXICON).read_text(encoding="utf-8").splitlines()),
        "images": data["counts"]["train"],
        "styles": ", ".join(f"{style} {n}" for style, n in sorted(data["styles"].items())),
        "documents": meta["documents"],
        "tokens": meta["tokens"],
        "kinds": ", ".join(f"{kind} {n}" for kind, n in meta["config"]["documents"].items()),
        "layers": model["num_hidden_layers"],
        "width": model["hidden_size"],
        "vocabulary": model["vocab_size"],
        "text": model["text_vocab_size"],
        "vq_steps": vq["steps"],
        "vq_batch": vq["batch_size"],
        "vq_hours": hours(sources.image_tokenizer / "log.jsonl", vq["batch_size"], speed),
        "decoder_steps": decoder["steps"],
        "decoder_hours": hours(sources.decoder / "log.jsonl", decoder["batch_size"], speed),
        "lm_steps": lm["steps"],
        "lm_batch": lm["batch_tokens"],
        "lm_hours": hours(sources.lm / "log.jsonl", lm["batch_tokens"], "tokens_per_second"),
        "seed": lm["seed"],
    }


def package(name: str, sources: Sources, device: str, note: str, root: Path = ROOT) -> int:
    """Write both folders.

    Returns:
        The bytes of all embedded weights.

    Raises:
        OSError: a file is missing.
        ValueError: weights do not fit into 16 bits, or are too many.
    """
    facts: dict[str, Any] = facts_of(sources) | {"name": name, "device": device, "note": note}
    rows = [row for row in read_manifest(sources.data) if row["split"] in ("train", EXTRA)]
    credits = attribution(rows)
    known = known_words(sources.data)
    calibration = (sources.evaluation / CALIBRATION).read_text(encoding="utf-8")

    tokenizer = root / "tokenizer_image" / "pretrained" / name
    shutil.rmtree(tokenizer, ignore_errors=True)
    tokenizer.mkdir(parents=True)
    parameters = halve(sources.decoder / "model" / "model.safetensors", tokenizer / "model.safetensors")
    shutil.copy(sources.decoder / "model" / "config.json", tokenizer / "config.json")
    sizes = {"parameters": parameters / 1e6, "steps": facts["vq_steps"], "batch": facts["vq_batch"]}
    words = TOKENIZER_CARD.format(**facts, **sizes, hours=facts["vq_hours"])
    (tokenizer / "README.md").write_text(words, encoding="utf-8")
    (tokenizer / "ATTRIBUTION.md").write_text(credits, encoding="utf-8")

    folder = root / "cm3" / "pretrained" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trained = sources.lm / "model"
    facts["lm_parameters"] = halve(trained / "model.safetensors", folder / "model.safetensors") / 1e6
    fingerprint = ImageTokenizer.from_pretrained(tokenizer).fingerprint()
    named = {"image_tokenizer": name, "image_tokenizer_fingerprint": fingerprint, "document_form": "plan"}
    values = {key: value for key, value in facts["model"].items() if key != "auto_map"}  # no code lies beside it
    (folder / "config.json").write_text(json.dumps(values | named, indent=2) + "\n")
    write_processor(folder, read_config(folder), facts["side"])
    for file in COPIED:
        shutil.copy(trained / file, folder / file)
    known.save(folder)
    shutil.copy(sources.data / LEXICON, folder / LEXICON)
    (folder / CALIBRATION).write_text(calibration, encoding="utf-8")
    (folder / "README.md").write_text(CARD.format(**facts), encoding="utf-8")
    (folder / "ATTRIBUTION.md").write_text(credits, encoding="utf-8")
    (folder / "evaluation.json").write_text(json.dumps(facts["evaluation"], indent=1, ensure_ascii=False) + "\n")
    write_checksums(folder)
    return embedded(root)


def main(
    runs: Annotated[Path, typer.Option(help="folder with lm, image_tokenizer, decoder and evaluation")] = Path("runs"),
    documents: Annotated[Path, typer.Option(help="of build_documents")] = Path("data/emoji-documents"),
    data: Annotated[Path, typer.Option(help="of build_dataset and build_lexicon")] = Path("data/emoji"),
    name: Annotated[str, typer.Option(help="of the model")] = "emoji",
    device: Annotated[str, typer.Option(help="what it was trained on, for the card")] = "CPU",
    note: Annotated[str, typer.Option(help="a sentence for the card")] = "",
) -> None:
    lm, image_tokenizer, decoder, evaluation = (
        runs / one for one in ("lm", "image_tokenizer", "decoder", "evaluation")
    )
    sources = Sources(lm, image_tokenizer, decoder, evaluation, documents, data)
    try:
        print(f"{package(name, sources, device, note):,} bytes of embedded weights")
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"package: {error}") from None


if __name__ == "__main__":
    typer.run(main)
