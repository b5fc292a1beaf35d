"""A small world for the emoji recipe: the drawings of data/sample as a data set with names in every language."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tokenizer_image import ImageTokenizer, VQConfig, VQModel
from train.images.samples import read_samples, write_shards
from train.recipes.emoji.dataset import EXTRA
from train.recipes.emoji.packages import LANGUAGES

TOKENIZER = VQConfig(
    resolution=256,
    patch_size=4,
    ch=8,
    ch_mult=(1, 1, 1),
    num_res_blocks=1,
    attn_resolutions=(),
    norm_groups=4,
    z_channels=8,
    embed_dim=4,
    n_embed=64,
    normalize=True,
    cell_width=16,
    cell_blocks=1,
    decoder_cell_blocks=1,
    tile=8,
)


def small_tokenizer() -> ImageTokenizer:
    """With the shape of the recipe's: 256 pixels, 16 x 16 codes, each of its grid position alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageTokenizer(VQModel(TOKENIZER))


def small_world(sample: Path, out: Path) -> Path:
    """The data set in `out`, of the drawings in data/sample scaled to 256 pixels."""
    rows, samples = {}, []
    for key, png, facts in read_samples(sample / "train"):
        drawing = Image.open(io.BytesIO(png)).convert("RGBA").resize((256, 256))
        file = io.BytesIO()
        drawing.save(file, "PNG")
        name = {"en": facts["name"]["en"], "ar": facts["name"]["ar"]}
        samples.append((key, file.getvalue(), {**facts, "name": name}))
        names = {language: f"{name['en']} {language}" for language in LANGUAGES} | name
        keep = ("code", "family", "group", "subgroup")
        rows[facts["code"]] = {"name": names, "keywords": {}} | {field: facts[field] for field in keep}
    assert np.all([row["family"] for row in rows.values()])
    write_shards(out / "train", samples[:-12])
    write_shards(out / EXTRA, [(f"extra_{key}", png, {**facts, "style": "other"}) for key, png, facts in samples[-12:]])
    for split in ("held_out_pairs", "held_out_concepts"):
        write_shards(out / split, [(f"{split}_{key}", png, facts) for key, png, facts in samples[:5]])
    (out / "names.json").write_text(json.dumps([*rows.values()], ensure_ascii=False), encoding="utf-8")
    return out
