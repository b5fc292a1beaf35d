"""Caption a webdataset on several machines with Ray Data. A stopped run can be resumed.

pip install "ray[data]" webdataset
python examples/caption_with_ray.py shards/ --out captions --workers 2

OUT gets Parquet files with __key__, text and error. Keys that are there already are skipped. A worker that dies is
restarted, and its batch repeated. On a cluster, --out and the shards must be on storage that all machines share.
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
    """A model in its own process, which captions batches of image files."""

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
            except (ValueError, OSError) as error:  # the error becomes a column, and the run continues
                errors.append(str(error))
        captions = iter(self.model.caption(images, language=self.language))
        texts = ["" if error else next(captions) for error in errors]
        return {"__key__": batch["__key__"], "text": np.array(texts, object), "error": np.array(errors, object)}


def done(out: Path) -> set[str]:
    """Keys that earlier runs have written."""
    return {key for file in sorted(out.glob("*.parquet")) for key in pq.read_table(file)["__key__"].to_pylist()}


def image_of(row: dict[str, Any]) -> dict[str, Any]:
    """Key and image of a webdataset sample."""
    found = next((row[suffix] for suffix in SUFFIXES if row.get(suffix) is not None), b"")
    return {"__key__": row["__key__"], "image": found}


def main(shards: Path, out: Path, model: str, language: str, workers: int, batch: int) -> int:
    """Caption the shards, and return how many captions are new."""
    out.mkdir(parents=True, exist_ok=True)
    known = done(out)
    samples = ray.data.read_webdataset([str(path) for path in sorted(shards.glob("*.tar"))], decoder=None)
    left = samples.map(image_of).filter(lambda row: row["__key__"] not in known)
    cores = max(0.1, (ray.cluster_resources()["CPU"] - 1) / workers)  # per worker; one core reads and writes
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
