"""Write a caption beside each picture of a folder, as trainers of other models read them: cat.png, cat.txt.

python examples/caption_folder.py my_pictures --question "What colour is it?"
"""

import argparse
from pathlib import Path

from cm3 import CM3

BATCH = 16


def main(folder: Path, language: str, question: str) -> None:
    model = CM3.from_pretrained("emoji")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    for start in range(0, len(paths), BATCH):
        some = [str(path) for path in paths[start : start + BATCH]]
        texts = model.answer(some, question) if question else model.caption(some, language=language)
        for path, text in zip(some, texts, strict=True):
            Path(path).with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
            print(f"{path}: {text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--language", default="en", choices=("en", "ar"))
    parser.add_argument("--question", default="", help="ask this in place of a caption")
    main(**vars(parser.parse_args()))
