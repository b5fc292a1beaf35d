"""Turn a folder of captioned pictures into token shards that train.lm reads.

    python -m train.prepare FOLDER --out data/mine [--image-tokenizer emoji | runs/mine/model]

FOLDER holds pictures, each with a text file of the same name beside it (cat.jpg, cat.txt). Every picture gives two
documents: its caption and then the picture, and the picture and then its caption.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from cm3.pipeline import PROMPTS
from cm3.text import TextTokenizer
from tokenizer_image import ImageTokenizer
from train.codes import encode_entries
from train.folders import Entry
from train.phrases import Target
from train.shards import ShardWriter
from train.views import read_folder


def prepare(folder: Path, out: Path, image_tokenizer: ImageTokenizer, text_vocab: int = 4096) -> dict:
    """Write the shards (train/shards.py). Returns the content of meta.json, which names what was skipped.

    Raises:
        ValueError: the folder has no picture with a caption.
    """
    words = {str(path): caption for path, caption in read_folder(folder)}
    silent = [name for name, caption in words.items() if not caption]
    skipped = [f"{name}: no caption in {Path(name).with_suffix('.txt').name}" for name in silent]
    entries = [Entry(name, name, 0, Path(name).stat().st_size) for name, caption in words.items() if caption]
    captions, codes = [], []
    for done in track(encode_entries(entries, image_tokenizer), "encoding", len(entries)):
        if done.reason:
            skipped.append(f"{done.entry.name}: {done.reason}")
        else:
            captions.append(words[done.entry.name])
            codes.append(done.codes.flatten().tolist())
    if not captions:
        raise ValueError(f"{folder} has no picture with a caption: put cat.txt beside cat.jpg")
    prompt = PROMPTS["caption"]["en"]
    writer = ShardWriter(TextTokenizer.train([prompt, *captions], text_vocab), image_tokenizer)
    for caption, picture in zip(captions, codes, strict=True):
        writer.draw(caption, picture)
        writer.ask([Target("caption", prompt, caption)], picture)
    return writer.save(out, pictures=len(captions), skipped=sorted(skipped))


def main(
    folder: Annotated[Path, typer.Argument(help="pictures with .txt beside them")],
    out: Annotated[Path, typer.Option(help="folder of the token shards")] = Path("data/mine"),
    image_tokenizer: Annotated[str, typer.Option(help="folder or name")] = "emoji",
) -> None:
    try:
        meta = prepare(folder, out, ImageTokenizer.from_pretrained(image_tokenizer))
    except (OSError, ValueError) as error:
        raise SystemExit(f"prepare: {error}") from None
    for line in meta["skipped"]:
        print(f"skipped {line}")
    print(f"{meta['pictures']} pictures, {meta['tokens']} tokens, {len(meta['skipped'])} skipped")


if __name__ == "__main__":
    typer.run(main)
