"""Caption a webdataset on many machines with Ray Data, and go on where a run was stopped.

pip install "ray[data]" webdataset
python examples/caption_with_ray.py shards/ --out captions --workers 2

OUT gets Parquet files of __key__, text and error. A key that stands there already is not captioned again; a worker that
dies is started anew, and its batch done again. On a cluster, give --out and the shards a place that all machines see.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray

from tokenizer_image.pixels import open_image

SUFFIXES = ("png", "jpg", "jpeg", "webp")


class Captioner:
    """A model in a process of its own: batches of bytes to texts."""

    def __init__(self, model: str, language: str, threads: int) -> None:
        import torch

        from cm3 import CM3

        torch.set_num_threads(threads)
        self.model, self.language = CM3.from_pretrained(model), language

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        images, errors = [], []
        for data in batch["image"]:
            try:
                images.append(open_image(bytes(data)))
                errors.append("")
            except (ValueError, OSError) as error:  # a bad image is told of, the others go on
                errors.append(str(error))
        told = iter(self.model.caption(images, language=self.language))
        texts = ["" if error else next(told) for error in errors]
        return {"__key__": batch["__key__"], "text": np.array(texts, object), "error": np.array(errors, object)}


def done(out: Path) -> set[str]:
    """Keys that earlier runs have written."""
    return {key for file in sorted(out.glob("*.parquet")) for key in pq.read_table(file)["__key__"].to_pylist()}


def image_of(row: dict[str, Any]) -> dict[str, Any]:
    """A webdataset sample's key and image."""
    found = next((row[suffix] for suffix in SUFFIXES if row.get(suffix) is not None), b"")
    return {"__key__": row["__key__"], "image": found}


def main(shards: Path, out: Path, model: str, language: str, workers: int, batch: int) -> int:
    """Returns how many were captioned now."""
    out.mkdir(parents=True, exist_ok=True)
    known = done(out)
    samples = ray.data.read_webdataset([str(path) for path in sorted(shards.glob("*.tar"))], decoder=None)
    left = samples.map(image_of).filter(lambda row: row["__key__"] not in known)
    cores = max(0.1, (ray.cluster_resources()["CPU"] - 1) / workers)  # of each; one is left to read and write
    captioned = left.map_batches(
        Captioner,
        fn_constructor_args=(model, language, max(1, int(cores))),
        batch_size=batch,
        concurrency=workers,
        num_cpus=cores if cores < 1 else int(cores),
        max_restarts=-1,
        max_task_retries=-1,
    )
    captioned.write_parquet(str(out))
    return len(done(out)) - len(known)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder of .tar files")
    parser.add_argument("--out", type=Path, default=Path("captions"))
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--language", default="en", choices=("en", "ar"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    print(f"{main(**vars(parser.parse_args()))} captioned")
