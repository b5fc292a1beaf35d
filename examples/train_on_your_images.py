"""Fine-tune the embedded model on your images with LoRA, then generate an image.

python examples/train_on_your_images.py my_images --out runs/mine --steps 500 --draw "a cat"

my_images has cat.jpg with its caption in cat.txt, and so on; train.prepare reads many other sources. The three steps
are those of `python -m train.prepare`, `python -m train.lm` and `cm3 generate`.
"""

import argparse
from pathlib import Path

from cm3 import CM3
from train.documents.worker import PrepareOptions
from train.language.config import LMConfig, LMDataConfig, LMOptimConfig, SampleConfig
from train.language.lora import Lora
from train.language.run import train
from train.prepare import prepare


def main(images: Path, out: Path, steps: int, draw: str) -> None:
    facts = prepare(images, out / "tokens", PrepareOptions(model="emoji", held_out=0.0))
    print(f"{facts['documents']} documents, {facts['tokens']} tokens")
    config = LMConfig(
        start="emoji",
        lora=Lora(rank=16),
        steps=steps,
        data=LMDataConfig(folder=str(out / "tokens")),
        optim=LMOptimConfig(warmup_steps=10),
        samples=SampleConfig(prompts=()),
    )
    model = CM3.from_pretrained(train(config, out))
    model.generate(draw, n=1)[0].resize((256, 256)).save(out / "drawing.png")
    print(out / "drawing.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/mine"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--draw", default="a cat")
    main(**vars(parser.parse_args()))
