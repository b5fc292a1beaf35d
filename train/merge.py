"""Average the weights of models that were fine-tuned from the same model (model soups, Wortsman et al. 2022).

    python -m train.merge runs/a/model runs/b/model --out runs/merged
    python -m train.merge runs/a/model runs/b/model --weights 0.7,0.3 --out runs/merged
    python -m train.merge runs/*/model --soup --data data/emoji-tokens --out runs/soup

OUT is a model folder: a copy of the first one with the averaged weights. --soup takes only those models that do not
make the average worse on the held-out documents of the token shards.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cm3.hf.model_folder import check_files, load_image_tokenizer, load_transformer, read_config, write_checksums
from cm3.tokens.tokenizer_json import load_text
from cm3.tokens.vocab import Vocab
from tokenizer_image.checkpoint import make_readable
from train.documents.shard_files import layout
from train.documents.shards import Shards

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
IGNORED = {
    "auto_map",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "image_tokenizer",
    "image_tokenizer_fingerprint",
}  # fields of config.json in which the models may differ
BATCH_TOKENS = 8192


class Soup(NamedTuple):
    """A soup of models.

    Attributes:
        folders: of its models, the best first.
        loss: of their average.
        alone: loss of each candidate.
    """

    folders: list[Path]
    loss: float
    alone: dict[Path, float]


def files_of(folder: Path) -> list[str]:
    """Return the names of the files with the weights of a model folder.

    Raises:
        ValueError: there are none.
    """
    if (folder / INDEX).is_file():
        return sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}: give folders that save_pretrained has written")
    return [WEIGHTS]


def check_alike(folders: Sequence[Path]) -> None:
    """Check that the weights of models can be averaged.

    Raises:
        ValueError: a folder is no whole model, or differs in architecture, vocabulary or image tokenizer.
    """
    facts: list[dict[str, Any]] = []
    for folder in folders:
        check_files(folder)
        config = json.loads((folder / "config.json").read_text())
        read = read_config(folder)
        image = load_image_tokenizer(folder, read)
        facts.append(
            {key: value for key, value in config.items() if key not in IGNORED}
            | {
                "the text tokenizer": load_text(folder, Vocab.from_config(read)).fingerprint(),
                "the image tokenizer": image.fingerprint(),
            }
        )
    first, *rest = facts
    for folder, other in zip(folders[1:], rest, strict=True):
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise ValueError(
                    f"{folders[0]} and {folder} cannot be averaged: {key} is {first.get(key)} in one and "
                    f"{other.get(key)} in the other"
                )


def average(folders: Sequence[Path], out: Path, weights: Sequence[float] = ()) -> None:
    """Write the weighted average of models.

    Args:
        folders: model folders. Only one file of each is in memory at a time.
        out: a folder that does not exist yet.
        weights: share of each model; none = equal shares.

    Raises:
        ValueError: `out` exists, the shares are not one for each folder with sum 1, the models do not fit together, or
            a tensor is not finite.
    """
    shares = list(weights) or [1 / len(folders)] * len(folders)
    if out.exists():
        raise ValueError(f"{out} exists: give another folder")
    if len(shares) != len(folders):
        raise ValueError(f"{len(shares)} weights for {len(folders)} models: give one each")
    if not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"the weights {shares} must be 0 or more, and 1 together")
    check_alike(folders)
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a run that died
    try:
        write_average(folders, unfinished, shares)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_average(folders: Sequence[Path], out: Path, shares: Sequence[float]) -> None:
    """Write a copy of the first folder with averaged weights, for folders that have been checked."""
    names = files_of(folders[0])
    out.mkdir(parents=True)
    for path in folders[0].iterdir():
        if path.is_dir():
            shutil.copytree(path, out / path.name)
        elif path.name not in names:
            shutil.copy2(path, out)
    with ExitStack() as stack:
        opened = [
            [stack.enter_context(safe_open(folder / name, "pt")) for name in files_of(folder)] for folder in folders
        ]
        places = [{key: file for file in files for key in file.keys()} for files in opened]
        for folder, place in zip(folders, places, strict=True):
            if missing := sorted(place.keys() ^ places[0].keys()):
                raise ValueError(f"only one of {folders[0]} and {folder} has the tensor {missing[0]}")
        for name, file in zip(names, opened[0], strict=True):
            tensors = {
                key: mean(key, [place[key].get_tensor(key) for place in places], shares, folders) for key in file.keys()
            }
            save_file(tensors, out / name, {"format": "pt"})
            make_readable(out / name)
    write_checksums(out)


def mean(name: str, tensors: list[Tensor], shares: Sequence[float], folders: Sequence[Path]) -> Tensor:
    """Compute the weighted mean in 64-bit floats, and return it in the type of the first tensor.

    Raises:
        ValueError: shapes differ, or a value is not finite.
    """
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, share, folder in zip(tensors, shares, folders, strict=True):
        if tensor.shape != total.shape:
            raise ValueError(f"{name} is {list(total.shape)} in {folders[0]} and {list(tensor.shape)} in {folder}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} of {folder} holds values that are not finite: the run that made it has failed")
        total.add_(tensor.double(), alpha=share)
    return total.to(tensors[0].dtype)


def greedy_soup(folders: Sequence[Path], loss: Callable[[Path], float], report: Callable[[str], None] = print) -> Soup:
    """Choose models by the greedy soup (Wortsman et al. 2022, recipe 1).

    From the best model to the worst, each is added if the loss of the average does not rise.

    Args:
        folders: model folders.
        loss: of a model folder, on documents on which no model was trained.
        report: is called with a line of text for each model.

    Raises:
        ValueError: as `average`; or a loss is not finite.
    """
    check_alike(folders)
    alone = {folder: loss(folder) for folder in folders}
    if bad := [folder for folder, value in alone.items() if not math.isfinite(value)]:
        raise ValueError(f"the loss of {bad[0]} is {alone[bad[0]]}: leave that model out")
    best, *others = sorted(alone, key=alone.__getitem__)
    chosen, lowest = [best], alone[best]
    report(f"{alone[best]:.4f}  {best}")
    for folder in others:
        with tempfile.TemporaryDirectory() as temporary:
            trial = Path(temporary) / "model"
            write_average([*chosen, folder], trial, [1 / (len(chosen) + 1)] * (len(chosen) + 1))
            value = loss(trial)
        taken = value <= lowest
        report(f"{alone[folder]:.4f}  {folder}: {value:.4f} with it, {'taken' if taken else 'left out'}")
        if taken:
            chosen, lowest = [*chosen, folder], value
    return Soup(chosen, lowest, alone)


@torch.inference_mode()
def next_token_loss(folder: Path, shards: Shards) -> float:
    """Compute the mean cross-entropy of a model over all next tokens of the documents as they are stored, in nats.

    In contrast to the losses of train.lm, no answer is masked, and all tokens have the same weight.

    Args:
        folder: of the model.
        shards: documents; what exceeds the model's context is cut off.

    Raises:
        ValueError: the model cannot be loaded, or its vocabulary is not that of the shards.
    """
    model = load_transformer(folder, {}).to("cuda" if torch.cuda.is_available() else "cpu").eval()  # pyright: ignore
    vocab = Vocab.from_config(model.config)
    mine = layout(vocab, cast(tuple[int, int], model.config.image_grid))
    if mine != shards.meta["vocab"] or load_text(folder, vocab).fingerprint() != shards.meta["text_tokenizer"]:
        raise ValueError(f"{folder} has another vocabulary ({mine}) than {shards.folder} ({shards.meta['vocab']})")
    context: int = model.config.max_position_embeddings
    lengths = np.minimum(shards.lengths, context)
    total, count, rows = 0.0, 0, []
    order = [int(i) for i in np.argsort(lengths, kind="stable") if lengths[i]]
    for position, i in enumerate(order):
        rows.append(torch.tensor(shards.document(i).ids[:context]))
        following = order[position + 1] if position + 1 < len(order) else None
        if following is not None and (len(rows) + 1) * int(lengths[following]) <= BATCH_TOKENS:
            continue
        ids = pad_sequence(rows, batch_first=True, padding_value=vocab.pad).to(model.device)  # [B, T]
        labels = pad_sequence(rows, batch_first=True, padding_value=-100)[:, 1:].to(model.device)  # [B, T - 1]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()  # [B, T - 1, V]
        total += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        count += int((labels != -100).sum())
        rows = []
    return total / count


def main(
    folders: Annotated[list[Path], typer.Argument(help="model folders")],
    out: Annotated[Path, typer.Option(help="model folder to write")],
    weights: Annotated[str, typer.Option(help="share of each model, such as 0.7,0.3")] = "",
    soup: Annotated[bool, typer.Option(help="take only models that do not make the average worse")] = False,
    data: Annotated[Path | None, typer.Option(help="token shards whose held-out documents measure the soup")] = None,
) -> None:
    try:
        if len(folders) < 2:
            raise ValueError(f"{len(folders)} model: give two or more")
        if soup != (data is not None):
            raise ValueError("--soup and --data go together")
        if soup and weights:
            raise ValueError("--soup gives its models equal shares: leave out --weights")
        if out.exists():
            raise ValueError(f"{out} exists: give another folder")
        shares = [float(share) for share in weights.split(",")] if weights else []
        if data is not None:
            shards = Shards(data, "held_out")
            found = greedy_soup(folders, lambda folder: next_token_loss(folder, shards))
            folders = found.folders
            print(f"{found.loss:.4f}  the soup of {len(folders)}")
        average(folders, out, shares)
    except (OSError, ValueError) as error:
        raise SystemExit(f"merge: {error}") from None


if __name__ == "__main__":
    typer.run(main)
