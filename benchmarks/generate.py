"""Speed of the engine against transformers' generate() on the same weights: generation and captioning.

    python -m benchmarks.generate [--model emoji] [--repeats 7] [--out benchmarks/results/generate-NAME.json]

The ways take turns, so that other load on the machine affects all of them. Each generates images with guidance, with
the embedded model and with random ones; the times are medians. "roofline" is the share of a step's time that reading
the weights and the cache once would take at the speed at which this machine copies memory. Prints a table, and one JSON
line at the end.
"""

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast
from unittest.mock import patch

import torch
import typer

import cm3.model.linear
from benchmarks.report import device_name, finish
from cm3 import CM3
from cm3.engine.engine import Engine
from cm3.engine.guidance import ClassifierFree
from cm3.engine.options import SamplingConfig
from cm3.engine.request import Request
from cm3.model.config import CM3Config
from cm3.model.memory import sequence_bytes
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.vocab import Vocab

SCALE, TOP_P, TEMPERATURE = 3.0, 0.9, 1.0
SHAPES = {  # of random models, by their millions of parameters
    "38M": dict(hidden_size=512, num_hidden_layers=10, num_attention_heads=8, intermediate_size=1408),
    "111M": dict(hidden_size=768, num_hidden_layers=14, num_attention_heads=12, intermediate_size=2048),
}
COPIED = 256 * 1024**2  # bytes


class Way(NamedTuple):
    """One way to generate.

    Attributes:
        draw: generates a number of images.
        bytes: that each step reads for a number of images, weights and cache.
    """

    draw: Callable[[int], object]
    bytes: Callable[[int], float]


def seconds(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of each function. They take turns, after one call each as a warm-up."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return times


def copy_speed() -> float:
    """Bytes read and written in one second of copying."""
    source, target = torch.zeros(COPIED, dtype=torch.uint8), torch.zeros(COPIED, dtype=torch.uint8)
    times = seconds({"copy": lambda: target.copy_(source)}, 9)["copy"]
    return 2 * COPIED / statistics.median(times)


def ours(model: CM3ForCausalLM, prompt: list[int], unconditional: list[int], compile: bool = False) -> Way:
    """This package's engine."""
    engine = Engine(model, Vocab.from_config(model.config), model.config.grid, compile=compile)

    def draw(count: int) -> object:
        sampling = SamplingConfig(temperature=TEMPERATURE, top_p=TOP_P)
        guide = ClassifierFree(image=SCALE)
        return engine.generate(
            [Request(prompt, "image", 256, sampling, guide, [unconditional], seed=seed) for seed in range(count)]
        )

    return Way(draw, bytes_read(model, codes_only=True))


def transformers_way(model: CM3ForCausalLM, prompt: list[int], unconditional: list[int], **options: Any) -> Way:
    """transformers' generate() with its guidance and sampling. It has no grammar, and generates ids of any kind."""
    rows, columns = model.config.grid

    def draw(count: int) -> object:
        with patch.object(cm3.model.linear, "TRANSPOSED_ROWS", 0):  # with torch's own linear layers
            return generate(count)

    def generate(count: int) -> object:
        torch.manual_seed(0)
        return cast(Any, model).generate(
            torch.tensor([prompt] * count),
            guidance_scale=SCALE,
            negative_prompt_ids=torch.tensor([unconditional] * count),
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            max_new_tokens=rows * columns,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )

    return Way(draw, bytes_read(model, codes_only=False))


def bytes_read(model: CM3ForCausalLM, codes_only: bool) -> Callable[[int], float]:
    """Bytes that a step reads for a number of images. `codes_only`: whether only the logits of codes are computed."""
    config = model.config
    rows, columns = config.grid
    assert config.vocab_size is not None and config.image_vocab_size is not None
    outside = config.vocab_size * config.hidden_size  # the embedding, of which a step reads a few rows
    head = (config.vocab_size - config.image_vocab_size if codes_only else 0) * config.hidden_size
    weights = (model.num_parameters() - outside - head) * model.dtype.itemsize
    return lambda count: weights + 2 * count * sequence_bytes(config, rows * columns // 2 + 6, model.dtype)


def ways_of(model: CM3ForCausalLM, prompt: list[int], unconditional: list[int]) -> dict[str, Way]:
    """All ways to generate with a model."""
    narrow = copy.deepcopy(model).bfloat16()
    return {
        "transformers": transformers_way(model, prompt, unconditional),
        "transformers, static cache": transformers_way(model, prompt, unconditional, cache_implementation="static"),
        "ours": ours(model, prompt, unconditional),
        "ours, compiled": ours(model, prompt, unconditional, compile=True),
        "transformers, bf16": transformers_way(narrow, prompt, unconditional),
        "ours, bf16": ours(narrow, prompt, unconditional),
        "ours, compiled, bf16": ours(narrow, prompt, unconditional, compile=True),
    }


def random_model(shape: dict[str, int]) -> CM3ForCausalLM:
    """A model with random weights."""
    torch.manual_seed(0)
    model = CM3ForCausalLM(CM3Config.preset("emoji", **shape))  # pyright: ignore[reportArgumentType]
    for parameter in model.parameters():
        if parameter.ndim == 2:  # output layers too, which are initialised to 0
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def main(
    model: Annotated[str, typer.Option(help="folder or name")] = "emoji",
    repeats: Annotated[int, typer.Option(help="timed calls")] = 7,
    shapes: Annotated[str, typer.Option(help="random models besides, of " + ", ".join(SHAPES))] = ",".join(SHAPES),
    counts: Annotated[str, typer.Option(help="images at once")] = "1,8",
    out: Annotated[Path | None, typer.Option(help="JSON file")] = None,
) -> None:
    speed = copy_speed()
    print(f"{device_name()}, torch {torch.__version__}; memory is copied at {speed / 1e9:.1f} GB/s")
    pipeline = CM3.from_pretrained(model)
    prompts = pipeline.jobs.generate("a red apple").requests[0]
    prompt, unconditional = list(prompts.prompt), list(prompts.extra_prompts[0])
    steps = pipeline.grid[0] * pipeline.grid[1]
    models = {model: pipeline.model} | {name: random_model(SHAPES[name]) for name in shapes.split(",") if name}
    rows: list[dict[str, Any]] = []
    print("| model | images | way | median s | against transformers | roofline |\n|---|---|---|---|---|---|")
    for name, one in models.items():
        ways = ways_of(one, prompt, unconditional)
        for count in map(int, counts.split(",")):
            times = seconds({name: partial(way.draw, count) for name, way in ways.items()}, repeats)
            for way, some in times.items():
                taken = statistics.median(some)
                against = statistics.median(times["transformers"]) / taken
                share = steps * ways[way].bytes(count) / speed / taken
                print(f"| {name} | {count} | {way} | {taken:.3f} | {against:.2f} | {share:.0%} |", flush=True)
                rows.append(
                    {
                        "model": name,
                        "images": count,
                        "way": way,
                        "seconds": [round(value, 4) for value in some],
                        "against_transformers": round(against, 2),
                        "roofline": round(share, 3),
                    }
                )
    images = pipeline.generate("a red apple", n=32)
    narrow = CM3.from_pretrained(model, dtype=torch.bfloat16)
    jobs: dict[str, Callable[[], object]] = {}
    for kind, one in (("", pipeline), (", bf16", narrow)):
        jobs |= {
            f"4 images{kind}": partial(one.generate, "a red apple", n=4, guidance=1.0),
            f"4 images, guidance{kind}": partial(one.generate, "a red apple", n=4, guidance=6.0),
            f"16 images, guidance{kind}": partial(one.generate, "a red apple", n=16, guidance=6.0),
            f"1 caption{kind}": partial(one.caption, images[0]),
            f"32 captions{kind}": partial(one.caption, images),
            f"1 answer{kind}": partial(one.answer, images[0], "What colour is it?"),
        }
    tasks = seconds(jobs, repeats)
    print("\n| task, whole, with pixels | median s |\n|---|---|")
    for job, some in tasks.items():
        print(f"| {job} | {statistics.median(some):.3f} |")
    finish(
        "generate",
        out,
        model=model,
        copy_bytes_per_second=round(speed),
        drawings=rows,
        tasks={name: [round(value, 4) for value in some] for name, some in tasks.items()},
    )


if __name__ == "__main__":
    typer.run(main)
