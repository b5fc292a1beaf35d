"""Cut a small sample out of the data set, for tests and a quick start.

python -m train.sample_data --data data/emoji --out data/sample
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from train.build_data import SPLITS, write_manifest, write_shards
from train.views import read_samples

CODES = (
    "1f34e",
    "1f431",
    "1f436",
    "1f695",
    "1f355",
    "1f337",
    "1f3b8",
    "1f41f",
    "1f34c",
    "26bd",
    "1f680",
    "1f9c1",
    "1f98b",
    "1f332",
    "1f438",
    "1f347",
    "1f6b2",
    "1f427",
    "1f344",
    "1f418",
    "1f353",
    "1f3ba",
    "1f528",
    "1f455",
    "1f42c",
    "1f34b",
    "1f68c",
    "1f33b",
    "1f98a",
    "1f369",
    "1f451",
    "1f511",
    "2708",
    "26f5",
    "1f422",
    "1f437",
    "1f33d",
    "1f382",
    "1f941",
)


def cut(data: Path, out: Path, codes: tuple[str, ...] = CODES) -> dict[str, int]:
    """The pictures of the given concepts, in their splits, with manifest and attribution. Returns counts by split."""
    rows = [json.loads(line) for line in (data / "manifest.jsonl").open(encoding="utf-8")]
    rows = [row for row in rows if row["code"] in codes]
    counts = {}
    for split in SPLITS:
        if any((data / split).glob("*.tar")):
            samples = (sample for sample in read_samples(data / split) if sample[2]["code"] in codes)
            counts[split] = write_shards(out / split, samples)
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out, rows)
    return counts


def main(
    data: Annotated[Path, typer.Option(help="folder of the data set")] = Path("data/emoji"),
    out: Annotated[Path, typer.Option(help="folder of the sample")] = Path("data/sample"),
) -> None:
    try:
        print(json.dumps(cut(data, out)))
    except OSError as error:
        raise SystemExit(f"sample_data: {error}") from None


if __name__ == "__main__":
    typer.run(main)
