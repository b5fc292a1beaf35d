"""The shapes that people know: their sizes as published, and the table that `cm3 info` prints."""

import sys
from pathlib import Path

import pytest

from cm3.cli import main as cli
from tokenizer_image import PRESETS, VQConfig, VQModel, count_parameters


@pytest.mark.parametrize(
    ("name", "pixels", "f", "tokens", "codes"),
    [
        ("taming-f16-1024", 256, 16, 256, (1024, 256)),
        ("taming-f16-16384", 256, 16, 256, (16384, 256)),
        ("cm3leon-f8", 256, 8, 1024, (8192, 256)),
        ("chameleon-512", 512, 16, 1024, (8192, 256)),
        ("llamagen-vq16", 256, 16, 256, (16384, 8)),
        ("llamagen-vq8", 256, 8, 1024, (16384, 8)),
        ("emoji-64", 64, 8, 64, (2048, 8)),
        ("emoji-128-f16", 128, 16, 64, (4096, 8)),
        ("emoji-128-f8", 128, 8, 256, (4096, 8)),
        ("emoji-128-cells", 128, 16, 64, (16384, 8)),
    ],
)
def test_presets_have_their_published_sizes(name: str, pixels: int, f: int, tokens: int, codes: tuple[int, int]):
    config = PRESETS[name]
    assert (config.resolution, config.downsampling, config.tokens) == (pixels, f, tokens)
    assert (config.n_embed, config.embed_dim) == codes


def test_attention_is_at_the_last_level_of_llamagens_and_nowhere_but_in_the_middle_of_chameleons():
    assert PRESETS["llamagen-vq16"].attn_levels == (4,) and PRESETS["llamagen-vq8"].attn_levels == (3,)
    assert PRESETS["taming-f16-1024"].attn_levels == (4,) and PRESETS["chameleon-512"].attn_levels == ()


def test_bits_are_those_of_the_codes_spread_over_the_pixels():
    assert VQConfig(n_embed=16384).bits_per_pixel == 14 / 256


def test_parameters_are_counted_as_they_are_made():
    counted, model = count_parameters(PRESETS["tiny"]), VQModel(PRESETS["tiny"])
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    assert counted.total == counted.encoder + counted.decoder + model.quantize.embedding.weight.numel()


def test_info_lists_every_preset_with_its_tokens_and_parameters(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["cm3", "info", str(tiny_folder)])
    with pytest.raises(SystemExit):
        cli.main()
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert PRESETS.keys() <= rows.keys()
    assert rows["taming-f16-1024"] == "256 16 256 1024 x 256 0.039 29.36 42.52 72.14".split()
