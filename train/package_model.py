"""Put a trained model into the package: weights in halves, model card, attribution, checksums.

    python -m train.package_model --name emoji --runs runs --tokens data/emoji-tokens --data data/emoji
    python -m train.package_model --name emoji-128-f8 --tokenizer runs/f8

Writes cm3/pretrained/NAME and tokenizer_image/pretrained/NAME, or, with --tokenizer, an image tokenizer alone. Nothing
is written before everything has been read.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from safetensors.torch import load_file, save_file

from cm3.hf.model_folder import read_config, write_checksums
from cm3.hf.remote_code import write_processor
from cm3.model.scorer import Scorer
from cm3.tasks.known_words import KnownWords
from tokenizer_image import ImageTokenizer
from tokenizer_image.checkpoint import make_readable
from train.documents.shards import Shards
from train.documents.words import texts_of
from train.emoji.dataset import EXTRA, attribution, read_images, read_manifest
from train.emoji.names import prompt_names

ROOT = Path(__file__).parent.parent
LIMIT = 48_000_000  # bytes of embedded weights

CARD = """# {name}: the embedded model of cm3

A small model that generates, edits, inpaints and captions emoji at {side} x {side} pixels and answers questions about
them, in English and Arabic. It knows {concepts} concepts ({kinds}) and scenes of up to three of {things} objects.

- language model: {lm_parameters:.1f}M parameters, {layers} layers, width {width}
- vocabulary: {vocabulary} ids, of them {text} text and {codes} image tokens
- image tokenizer: {vq_parameters:.1f}M parameters, {codes} codes, {grid[0]} x {grid[1]} an image, {psnr:.2f} dB PSNR on
  held-out concept-style pairs
{scorer}- weights are stored in 16-bit floats and computed in 32-bit

## Limitations

The model knows no photographs, no people, and nothing outside its concepts. It writes no prose and no words into
images. Most images that it generates are near copies of training images.

## Evaluation

docs/results.md in the repository has every table, with the commands: `python -m train.evaluate concepts --model {name}
--temperature 0.5 --top-p 0.9` and `python -m train.evaluate_tasks --model {name}`. `evaluation.json` and
`task_evaluation.json` in this folder hold the figures.

## Data

{images} images of the training split, each in {views} views: {documents} documents, {tokens} tokens. No skin-tone
variants, no flags. Images by style: {styles}. Questions are asked about distorted images and about images of further
styles; these are never generated. Licences: see ATTRIBUTION.md. Held out: one style of each of some concepts (held-out
concept-style pairs), and a tenth of the concepts of every kind (held-out concepts).

Instruction tuning: {tuning_documents} documents, {tuning_tokens} tokens: {tasks}. Scenes are made of the same images;
combinations of an object with a count, a colour or another object's side are held out.

## Training

Device: {device}. Language model: {lm_hours:.2f} hours, {lm_steps} steps of {lm_batch} tokens, seed {seed}; then
instruction tuning, {tuning_hours:.2f} hours, {tuning_steps} steps of {tuning_batch} tokens, seed {tuning_seed}.
Image tokenizer: {vq_hours:.2f} hours, {vq_steps} steps of {vq_batch} images of all concepts{decoder}. {note}

docs/training.md in the repository has the commands; the configs are in train/configs/.
"""


TOKENIZER_CARD = """# {name}: an image tokenizer for emoji

{side} x {side} pixels to {grid[0]} x {grid[1]} codes out of {codes}, each of {dim} dimensions; {parameters:.1f}M
parameters. Weights are stored in 16-bit floats and computed in 32-bit.

Trained on {images} emoji of six styles (no skin-tone variants; licences: see ATTRIBUTION.md), on their pixels alone:

{phases}

Device: {device}. Held-out concept-style pairs (a known concept in a style in which it was not trained): {psnr:.2f} dB,
{usage:.1%} codebook usage. docs/results.md in the repository has more figures, also for photographs, which it has
not seen.
"""


def hours(log: Path, batch: int, speed: str) -> float:
    """Time spent in steps, from the speeds in a run's log."""
    rows = [json.loads(line) for line in log.open()]
    rows = [row for row in rows if speed in row]
    steps = [row["step"] for row in rows]
    gaps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    return sum(max(gap, 0) * batch / row[speed] for gap, row in zip(gaps, rows, strict=True)) / 3600


def halve(source: Path, target: Path) -> int:
    """Copy a safetensors file with its floats as 16-bit floats. Returns the number of parameters."""
    weights = load_file(source)
    small = {key: value.to(torch.float16) if value.is_floating_point() else value for key, value in weights.items()}
    if bad := [key for key, value in small.items() if not value.isfinite().all()]:
        raise ValueError(f"{source}: {bad[0]} does not fit into 16 bits")
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(small, target, metadata={"format": "pt"})
    make_readable(target)
    return sum(value.numel() for value in weights.values())


def card(name: str, device: str, note: str, facts: dict[str, Any]) -> str:
    meta, lm, vq, model = facts["meta"], facts["lm"], facts["vq"], facts["model"]
    tuning, tuning_meta = facts["tuning"], facts["tuning_meta"]
    scorer = ""
    if "scorer_parameters" in facts:
        scorer = f"- scorer for `best_of`: {facts['scorer_parameters'] / 1e6:.1f}M parameters\n"
    decoder = ""
    if "decoder" in facts:
        sizes = f"{facts['decoder']['steps']} steps of {facts['decoder']['batch_size']} scenes and single images"
        decoder = f";\nthen its decoder alone, {facts['decoder_hours']:.2f} hours, {sizes}"
    return CARD.format(
        name=name,
        device=device,
        note=note,
        psnr=facts["evaluation"]["splits"]["held_out_pairs"]["reconstruction"]["psnr"],
        concepts=meta["concepts"],
        kinds=", ".join(meta["config"]["subgroups"]) or "every group",
        images=meta["images"],
        views=meta["config"]["views"],
        documents=meta["documents"],
        tokens=meta["tokens"],
        styles=", ".join(f"{style} {count}" for style, count in sorted(meta["styles"].items())),
        layers=model["num_hidden_layers"],
        width=model["hidden_size"],
        vocabulary=model["vocab_size"],
        text=model["text_vocab_size"],
        codes=model["image_vocab_size"],
        grid=model["image_grid"],
        lm_parameters=facts["lm_parameters"] / 1e6,
        vq_parameters=facts["vq_parameters"] / 1e6,
        scorer=scorer,
        lm_hours=facts["lm_hours"],
        lm_steps=lm["steps"],
        lm_batch=lm["batch_tokens"],
        seed=lm["seed"],
        tuning_hours=facts["tuning_hours"],
        tuning_steps=tuning["steps"],
        tuning_batch=tuning["batch_tokens"],
        tuning_seed=tuning["seed"],
        things=len(tuning_meta["config"]["things"]),
        tuning_documents=tuning_meta["documents"],
        tuning_tokens=tuning_meta["tokens"],
        tasks=", ".join(f"{task} {count}" for task, count in sorted(tuning_meta["tasks"].items())),
        vq_hours=facts["vq_hours"],
        vq_steps=vq["steps"],
        vq_batch=vq["batch_size"],
        decoder=decoder,
        side=facts["side"],
    )


class Runs(NamedTuple):
    """The folders that a model comes from.

    Attributes:
        lm: of train.lm, from nothing.
        tuning: of train.lm, on the instructions; its weights are taken where there are no merged ones.
        merged: output of train.merge, of `tuning` and further such runs.
        image_tokenizer: of train.image_tokenizer.
        decoder: of its second phase; its weights are taken where there is such a folder.
        scorer: of train.scorer; without it the model has none.
        evaluation: output of `train.evaluate concepts`.
        task_evaluation: output of train.evaluate_tasks.
        tokens: the token shards of `lm`.
        tuning_tokens: those of `tuning`.
        data: the data set.
    """

    lm: Path = Path("runs/lm")
    tuning: Path = Path("runs/instruct")
    merged: Path = Path("runs/merged")
    image_tokenizer: Path = Path("runs/image_tokenizer")
    decoder: Path = Path("runs/decoder")
    scorer: Path = Path("runs/scorer")
    evaluation: Path = Path("runs/evaluation")
    task_evaluation: Path = Path("runs/evaluation-tasks")
    tokens: Path = Path("data/emoji-tokens")
    tuning_tokens: Path = Path("data/emoji-instruct")
    data: Path = Path("data/emoji")


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def images_of(data: Path, *splits: str) -> list[dict[str, Any]]:
    """Rows of the data set's manifest."""
    return [row for row in read_manifest(data) if row["split"] in splits]


def package(name: str, runs: Runs, device: str, note: str, root: Path = ROOT) -> int:
    """Write both folders. Returns the bytes of all embedded weights."""
    trained = runs.merged if runs.merged.is_dir() else runs.tuning / "model"
    facts: dict[str, Any] = {
        "lm": read_json(runs.lm / "config.json"),
        "tuning": read_json(runs.tuning / "config.json"),
        "vq": read_json(runs.image_tokenizer / "config.json"),
        "meta": read_json(runs.tokens / "meta.json"),
        "tuning_meta": read_json(runs.tuning_tokens / "meta.json"),
        "model": read_json(trained / "config.json"),
        "evaluation": read_json(runs.evaluation / "evaluation.json"),
        "task_evaluation": read_json(runs.task_evaluation / "evaluation.json"),
    }
    for run, phase in ((runs.lm, "lm"), (runs.tuning, "tuning")):
        facts[f"{phase}_hours"] = hours(run / "log.jsonl", facts[phase]["batch_tokens"], "tokens_per_second")
    phases = {"vq": runs.image_tokenizer}
    if runs.decoder.is_dir():
        phases["decoder"], facts["decoder"] = runs.decoder, read_json(runs.decoder / "config.json")
    for phase, run in phases.items():
        facts[f"{phase}_hours"] = hours(run / "log.jsonl", facts[phase]["batch_size"], "images_per_second")
    tokenizer = ImageTokenizer.from_pretrained(list(phases.values())[-1] / "model").model
    facts["side"], facts["vq_parameters"] = tokenizer.config.resolution, sum(map(torch.numel, tokenizer.parameters()))

    package_tokenizer(name, list(phases.values()), runs.data, device, root)
    ours = root / "cm3" / "pretrained" / name
    shutil.rmtree(ours, ignore_errors=True)
    ours.mkdir(parents=True)
    (ours / "ATTRIBUTION.md").write_text(attribution(images_of(runs.data, "train", EXTRA)), encoding="utf-8")
    facts["lm_parameters"] = halve(trained / "model.safetensors", ours / "model.safetensors")
    named = {"image_tokenizer": name, "image_tokenizer_fingerprint": facts["meta"]["image_tokenizer"]}
    values = {key: value for key, value in facts["model"].items() if key != "auto_map"}  # no code lies beside it
    (ours / "config.json").write_text(json.dumps(values | named, indent=2) + "\n")
    write_processor(ours, read_config(ours), facts["side"])
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (trained / file).exists():
            shutil.copy(trained / file, ours / file)
    if (runs.scorer / "model").is_dir():
        scorer = Scorer.from_pretrained(runs.scorer / "model")
        scorer.save_pretrained(ours / "scorer")
        facts["scorer_parameters"] = sum(parameter.numel() for parameter in scorer.parameters())
    (ours / "README.md").write_text(card(name, device, note, facts), encoding="utf-8")
    for kind in ("evaluation", "task_evaluation"):
        (ours / f"{kind}.json").write_text(json.dumps(facts[kind], indent=1) + "\n")
    texts = [text for folder in (runs.tokens, runs.tuning_tokens) for text in texts_of(Shards(folder))]
    concepts = set(read_json(runs.tokens / "concepts.json"))
    names = prompt_names(read_images(runs.data, "train", (), concepts).rows)
    KnownWords.read(texts, names).save(ours)
    write_checksums(ours)
    return embedded(root)


def package_tokenizer(name: str, runs: Sequence[Path], data: Path, device: str, root: Path = ROOT) -> int:
    """Write tokenizer_image/pretrained/NAME from runs of train.image_tokenizer, each of which went on from the one
    before: the last one's weights. Returns what `package` does."""
    configs = [read_json(run / "config.json") for run in runs]
    logs = [[json.loads(line) for line in (run / "log.jsonl").open()] for run in runs]
    model = runs[-1] / "model"
    shape = ImageTokenizer.from_pretrained(model).model.config
    last = [row for row in logs[-1] if "split" in row][-1]
    train = images_of(data, "train")

    folder = root / "tokenizer_image" / "pretrained" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "ATTRIBUTION.md").write_text(attribution(train), encoding="utf-8")
    parameters = halve(model / "model.safetensors", folder / "model.safetensors")
    shutil.copy(model / "config.json", folder / "config.json")
    phases = []
    for config, rows in zip(configs, logs, strict=True):
        what = "the decoder alone, on scenes and signs too" if config.get("decoder_only") else "all of it"
        spent = max(row["seconds"] for row in rows if "seconds" in row) / 3600
        sizes = f"{config['steps']} steps of {config['batch_size']} images, seed {config['seed']}"
        phases.append(f"- {what}: {sizes}, {spent:.2f} hours")
    words = TOKENIZER_CARD.format(
        name=name,
        side=shape.resolution,
        grid=shape.grid,
        codes=shape.n_embed,
        dim=shape.embed_dim,
        parameters=parameters / 1e6,
        images=len(train),
        phases="\n".join(phases),
        device=device,
        psnr=last["psnr"],
        usage=last["codebook_usage"],
    )
    (folder / "README.md").write_text(words, encoding="utf-8")
    return embedded(root)


def embedded(root: Path) -> int:
    """Bytes of all embedded weights. Raises ValueError above the limit."""
    size = sum(path.stat().st_size for path in root.glob("*/pretrained/**/*.safetensors"))
    if size > LIMIT:
        raise ValueError(f"the weights take {size:,} bytes; at most {LIMIT:,} are embedded")
    return size


def main(
    name: Annotated[str, typer.Option(help="of the model")] = "emoji",
    runs: Annotated[Path, typer.Option(help="folder with lm, instruct, scorer, image_tokenizer ...")] = Path("runs"),
    tokens: Annotated[Path, typer.Option(help="folder of the token shards")] = Path("data/emoji-tokens"),
    tuning_tokens: Annotated[Path, typer.Option(help="those of the instructions")] = Path("data/emoji-instruct"),
    data: Annotated[Path, typer.Option(help="folder of the data set")] = Path("data/emoji"),
    device: Annotated[str, typer.Option(help="what it was trained on, for the card")] = "CPU",
    note: Annotated[str, typer.Option(help="a sentence for the card")] = "",
    tokenizer: Annotated[Path | None, typer.Option(help="run of an image tokenizer to package alone")] = None,
) -> None:
    usual = Runs()._asdict().items()
    inside = {name: runs / path.relative_to("runs") for name, path in usual if path.is_relative_to("runs")}
    try:
        alone = tokenizer and package_tokenizer(name, [tokenizer], data, device)
        folders = Runs(**inside, tokens=tokens, tuning_tokens=tuning_tokens, data=data)
        print(f"{alone or package(name, folders, device, note):,} bytes of embedded weights")
    except (OSError, ValueError) as error:
        raise SystemExit(f"package_model: {error}") from None


if __name__ == "__main__":
    typer.run(main)
