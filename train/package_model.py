"""Put a trained model into the package: weights in halves, model card, attribution, checksums.

    python -m train.package_model --name emoji --lm runs/lm --image-tokenizer runs/image_tokenizer \
        --tokens data/emoji-tokens --data data/emoji --evaluation runs/evaluation

Writes cm3/models/NAME and tokenizer_image/models/NAME. Nothing is written before everything has been read.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file

from cm3.pipeline import write_checksums
from train.build_data import attribution
from train.evaluate import table

ROOT = Path(__file__).parent.parent
LIMIT = 48_000_000  # bytes of embedded weights

CARD = """# {name}: the embedded model of cm3

A small model that draws, captions and answers questions about emoji art at 64 x 64 pixels, in English and Arabic.
It knows {concepts} concepts ({kinds}). It does not know photographs, people, or anything outside them, and it cannot
write prose.

- language model: {lm_parameters:.1f}M parameters, {layers} layers, width {width}
- vocabulary: {vocabulary} ids, of them {text} of text and {codes} image codes
- image tokenizer: {vq_parameters:.1f}M parameters, {codes} codes, {grid[0]} x {grid[1]} a picture
- weights are stored in 16-bit floats and computed in 32-bit

## Data

{pictures} pictures of the training split, each in {views} views: {documents} documents, {tokens} tokens. No skin-tone
variants, no flags. Pictures by style: {styles}. Licences: see ATTRIBUTION.md. Held out: one style of each of some
concepts ("unseen cell"), and a tenth of the concepts of every kind ("unseen concept").

## Training

Device: {device}. Language model: {lm_hours:.2f} hours, {lm_steps} steps of {lm_batch} documents, seed {seed}.
Image tokenizer: {vq_hours:.2f} hours, {vq_steps} steps of {vq_batch} pictures of all concepts. {note}

`make train-emoji` repeats it. Configs: train/configs/image_tokenizer_emoji.toml, train/configs/lm_emoji.toml.

## Evaluation

`python -m train.evaluate --model emoji` on plain views. Captions count as right when they are the CLDR name to the
letter; the blind column knows which answer each question has most often and sees no picture. The judge of drawings is
EfficientNet-lite0 (ImageNet features) against real pictures of other styles: neither FID nor CLIP score.

{table}
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
    return sum(value.numel() for value in weights.values())


def card(name: str, device: str, note: str, facts: dict[str, Any]) -> str:
    meta, lm, vq, model = facts["meta"], facts["lm"], facts["vq"], facts["model"]
    return CARD.format(
        name=name, device=device, note=note, table=table(facts["evaluation"]), concepts=meta["concepts"],
        kinds=", ".join(meta["config"]["subgroups"]) or "every group", pictures=meta["pictures"],
        views=meta["config"]["views"], documents=meta["documents"], tokens=meta["tokens"],
        styles=", ".join(f"{style} {count}" for style, count in sorted(meta["styles"].items())),
        layers=model["num_hidden_layers"], width=model["hidden_size"], vocabulary=model["vocab_size"],
        text=model["text_vocab_size"], codes=model["image_vocab_size"], grid=model["image_grid"],
        lm_parameters=facts["lm_parameters"] / 1e6, vq_parameters=facts["vq_parameters"] / 1e6,
        lm_hours=facts["lm_hours"], lm_steps=lm["steps"], lm_batch=lm["batch_size"], seed=lm["seed"],
        vq_hours=facts["vq_hours"], vq_steps=vq["steps"], vq_batch=vq["batch_size"],
    )  # fmt: skip


def package(name: str, lm: Path, image_tokenizer: Path, tokens: Path, data: Path, evaluation: Path, device: str,
            note: str, root: Path = ROOT) -> int:  # fmt: skip
    """Write both folders. Returns the bytes of their weights."""
    facts: dict[str, Any] = {
        "lm": json.loads((lm / "config.json").read_text()),
        "vq": json.loads((image_tokenizer / "config.json").read_text()),
        "meta": json.loads((tokens / "meta.json").read_text()),
        "model": json.loads((lm / "model" / "config.json").read_text()),
        "evaluation": json.loads((evaluation / "evaluation.json").read_text()),
    }
    facts["lm_hours"] = hours(lm / "log.jsonl", facts["lm"]["batch_size"], "documents_per_second")
    facts["vq_hours"] = hours(image_tokenizer / "log.jsonl", facts["vq"]["batch_size"], "images_per_second")
    manifest = [json.loads(line) for line in (data / "manifest.jsonl").open(encoding="utf-8")]
    credits = attribution([row for row in manifest if row["split"] == "train"])

    ours, pictures = root / "cm3" / "models" / name, root / "tokenizer_image" / "models" / name
    for folder in (ours, pictures):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "ATTRIBUTION.md").write_text(credits, encoding="utf-8")
    facts["vq_parameters"] = halve(image_tokenizer / "model" / "model.safetensors", pictures / "model.safetensors")
    shutil.copy(image_tokenizer / "model" / "config.json", pictures / "config.json")
    facts["lm_parameters"] = halve(lm / "model" / "model.safetensors", ours / "model.safetensors")
    (ours / "config.json").write_text(json.dumps(facts["model"] | {"image_tokenizer": name}, indent=2) + "\n")
    for file in ("tokenizer.json", "generation_config.json"):
        if (lm / "model" / file).exists():
            shutil.copy(lm / "model" / file, ours / file)
    (ours / "README.md").write_text(card(name, device, note, facts), encoding="utf-8")
    (ours / "evaluation.json").write_text(json.dumps(facts["evaluation"], indent=1) + "\n")
    write_checksums(ours)
    size = sum(path.stat().st_size for folder in (ours, pictures) for path in folder.glob("*.safetensors"))
    if size > LIMIT:
        raise ValueError(f"the weights take {size:,} bytes; at most {LIMIT:,} are embedded")
    return size


def main(
    name: Annotated[str, typer.Option(help="of the model")] = "emoji",
    lm: Annotated[Path, typer.Option(help="run of train.lm")] = Path("runs/lm"),
    image_tokenizer: Annotated[Path, typer.Option(help="run of train.image_tokenizer")] = Path("runs/image_tokenizer"),
    tokens: Annotated[Path, typer.Option(help="folder of the token shards")] = Path("data/emoji-tokens"),
    data: Annotated[Path, typer.Option(help="folder of the data set")] = Path("data/emoji"),
    evaluation: Annotated[Path, typer.Option(help="output of train.evaluate")] = Path("runs/evaluation"),
    device: Annotated[str, typer.Option(help="what it was trained on, for the card")] = "CPU",
    note: Annotated[str, typer.Option(help="a sentence for the card")] = "",
) -> None:
    try:
        print(f"{package(name, lm, image_tokenizer, tokens, data, evaluation, device, note):,} bytes of weights")
    except (OSError, ValueError) as error:
        raise SystemExit(f"package_model: {error}") from None


if __name__ == "__main__":
    typer.run(main)
