"""The image tokenizer alone: encode an image as codes, and decode the codes to an image.

python examples/tokenizer.py image.png --out again.png
"""

import argparse

import numpy as np

from tokenizer_image import ImageTokenizer


def main(image: str, name: str, out: str) -> None:
    tokenizer = ImageTokenizer.from_pretrained(name)
    codes = tokenizer.encode(image)  # [h, w]
    again = tokenizer.decode(codes)
    (small,) = tokenizer.decode(codes[None])  # a batch gives a list
    assert np.array_equal(again, small)
    print(f"{codes.numel()} codes out of {tokenizer.num_codes}, the first row: {codes[0].tolist()}")
    again.save(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--name", default="emoji", help="embedded tokenizer, or a folder")
    parser.add_argument("--out", default="again.png")
    main(**vars(parser.parse_args()))
