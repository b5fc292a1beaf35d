"""Generate an image from a prompt, the best of four candidates.

python examples/draw.py "a red apple" --out apple.png
"""

import argparse

from cm3 import CM3


def main(prompt: str, out: str, seed: int) -> None:
    model = CM3.from_pretrained("emoji")
    [image] = model.generate(prompt, n=1, best_of=4, seed=seed)
    print(f"caption: {model.caption(image)}, {model.caption(image, language='ar')}")
    image.resize((256, 256)).save(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--out", default="out.png")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
