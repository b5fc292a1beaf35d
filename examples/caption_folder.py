"""Write a caption beside each image of a folder, as trainers of other models expect: cat.png, cat.txt.
Existing texts are kept.

python examples/caption_folder.py my_images --question "What colour is it?"
"""

import argparse
from pathlib import Path

from cm3 import CM3

BATCH = 16


def main(folder: Path, language: str, question: str) -> None:
    model = CM3.from_pretrained("emoji")
    image_of: dict[Path, Path] = {}  # text file to image
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")):
        text_file = path.with_suffix(".txt")
        if text_file.exists() or text_file in image_of:
            print(f"{path}: skipped, {text_file.name} exists or belongs to another image")
        else:
            image_of[text_file] = path
    text_files = list(image_of)
    for start in range(0, len(text_files), BATCH):
        batch = text_files[start : start + BATCH]
        images = [str(image_of[text_file]) for text_file in batch]
        texts = model.answer(images, question) if question else model.caption(images, language=language)
        for text_file, image, text in zip(batch, images, texts, strict=True):
            text_file.write_text(text + "\n", encoding="utf-8")
            print(f"{image}: {text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--language", default="en", choices=("en", "ar"))
    parser.add_argument("--question", default="", help="ask this in place of a caption")
    main(**vars(parser.parse_args()))
