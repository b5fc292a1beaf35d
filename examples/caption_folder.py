"""Write a caption beside each image of a folder, as trainers of other models read them: cat.png, cat.txt.
A text that is there stays.

python examples/caption_folder.py my_images --question "What colour is it?"
"""

import argparse
from pathlib import Path

from cm3 import CM3

BATCH = 16


def main(folder: Path, language: str, question: str) -> None:
    model = CM3.from_pretrained("emoji")
    wanted: dict[Path, Path] = {}  # text file -> its image
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")):
        place = path.with_suffix(".txt")
        if place.exists() or place in wanted:
            print(f"{path}: left out, {place.name} is there already or is another image's")
        else:
            wanted[place] = path
    places = list(wanted)
    for start in range(0, len(places), BATCH):
        some = places[start : start + BATCH]
        images = [str(wanted[place]) for place in some]
        texts = model.answer(images, question) if question else model.caption(images, language=language)
        for place, image, text in zip(some, images, texts, strict=True):
            place.write_text(text + "\n", encoding="utf-8")
            print(f"{image}: {text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--language", default="en", choices=("en", "ar"))
    parser.add_argument("--question", default="", help="ask this in place of a caption")
    main(**vars(parser.parse_args()))
