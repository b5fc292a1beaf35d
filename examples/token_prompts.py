"""Images as prompts of token ids, for engines that accept ids: vLLM, or any that runs a transformers model.

python examples/token_prompts.py my_images --out prompts.jsonl --question "What colour is it?"

Each line has the name of an image, its prompt_token_ids, and the range of ids that an answer may have.
docs/transformers.md shows how to use them with vLLM.
"""

import argparse
import json
from pathlib import Path

from cm3 import CM3
from cm3.engine.options import CaptionOptions, Language

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def main(folder: Path, out: Path, model: str, language: Language, question: str) -> None:
    cm3 = CM3.from_pretrained(model)
    vocab = cm3.vocab
    answer = {"first_text": vocab.first_text, "first_code": vocab.first_code, "ends": list(vocab.ends)}
    with out.open("w", encoding="utf-8") as lines:
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
            options = CaptionOptions(language=language)
            job = cm3.jobs.answer(path, question) if question else cm3.jobs.caption(path, options)
            [request] = job.requests
            row = {"file_name": path.name, "prompt_token_ids": request.prompt, **answer}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(f"{path.name}: {len(request.prompt)} ids")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("prompts.jsonl"))
    parser.add_argument("--model", default="emoji", help="name or folder")
    parser.add_argument("--language", default="en", choices=("en", "ar"))
    parser.add_argument("--question", default="", help="ask this in place of a caption")
    main(**vars(parser.parse_args()))
