"""The wheel: the library with its model and nothing else, working in any folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from checkout import ROOT

SCRIPT = """
from cm3 import CM3
model = CM3.from_pretrained("emoji")
image = model.generate("a red apple", n=1, seed=7)[0]
print(image.size, model.caption(image), sep="|")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_its_model_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"cm3", "tokenizer_image"}
    for file in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "ATTRIBUTION.md"):
        assert f"cm3/pretrained/emoji/{file}" in names
    for file in ("config.json", "model.safetensors", "ATTRIBUTION.md"):
        assert f"tokenizer_image/pretrained/emoji/{file}" in names
    assert any(name.endswith("entry_points.txt") for name in names)
    assert wheel.stat().st_size < 60e6


@pytest.mark.slow
def test_the_unpacked_wheel_draws_and_captions_in_another_folder(wheel: Path, tmp_path: Path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    (elsewhere / "emoji").mkdir()  # a folder of that name must not be taken for the model
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{SCRIPT}"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=True)
    size, _, caption = done.stdout.strip().partition("|")
    assert size == "(128, 128)" and caption
