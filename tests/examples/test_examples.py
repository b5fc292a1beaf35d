"""The examples, run as a newcomer runs them."""

import json
import os
import shutil
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer
from webdataset.writer import ShardWriter

from checkout import ROOT
from cm3 import CM3
from cm3.hf.model_folder import EMBEDDED

EXAMPLES = ROOT / "examples"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", str(EXAMPLES / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    drawn = CM3.from_pretrained("emoji", device="cpu").generate(["a red apple", "a tulip", "a bus"], seed=7)
    for i, [image] in enumerate(drawn):
        image.save(folder / f"{i}.png")
    return folder


def test_draw(tmp_path: Path):
    assert "caption: " in run("draw.py", "a red apple", "--out", str(tmp_path / "apple.png"))
    assert Image.open(tmp_path / "apple.png").size == (256, 256)


def test_a_folder_is_captioned_and_asked_and_texts_that_are_there_stay(images: Path, tmp_path: Path):
    folder = tmp_path / "mine"
    shutil.copytree(images, folder, ignore=shutil.ignore_patterns("*.txt"))
    shutil.copy(folder / "1.png", folder / "1.webp")
    (folder / "0.txt").write_text("mine\n")
    out = run("caption_folder.py", str(folder))
    assert out.count("skipped, 0.txt exists") == 1 and out.count("skipped, 1.txt exists") == 1
    captions = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}
    assert captions.pop("0.txt") == "mine\n" and set(captions) == {"1.txt", "2.txt"}
    assert all(text.strip() for text in captions.values())
    for name in captions:
        (folder / name).unlink()
    run("caption_folder.py", str(folder), "--question", "What colour is it?")
    assert all((folder / name).read_text(encoding="utf-8") != captions[name] for name in captions)
    assert (folder / "0.txt").read_text() == "mine\n"


def test_prompts_of_ids_give_the_captions_in_any_engine(images: Path, tmp_path: Path):
    run("token_prompts.py", str(images), "--out", str(tmp_path / "prompts.jsonl"))
    model = CM3.from_pretrained("emoji", device="cpu")
    engine: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED / "emoji")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "emoji")
    for row in map(json.loads, (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()):
        allowed = [*row["ends"], *range(row["first_text"], row["first_code"])]
        prompt = torch.tensor([row["prompt_token_ids"]])
        options: dict[str, Any] = dict(max_new_tokens=64, do_sample=False, eos_token_id=row["ends"])
        ids = engine.generate(prompt, prefix_allowed_tokens_fn=lambda *_, ids=allowed: ids, **options)
        text = tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True).strip()
        assert text == model.caption(str(images / row["file_name"]))


def test_own_images_are_learnt(images: Path, tmp_path: Path):
    for path in images.glob("*.png"):
        path.with_suffix(".txt").write_text("a red apple", encoding="utf-8")
    out = run("train_on_your_images.py", str(images), "--out", str(tmp_path), "--steps", "2", "--draw", "an apple")
    assert "6 documents" in out and (tmp_path / "adapter").is_dir()
    assert Image.open(tmp_path / "drawing.png").size == (256, 256)


def test_the_tokenizer_alone(images: Path, tmp_path: Path):
    out = run("tokenizer.py", str(images / "0.png"), "--out", str(tmp_path / "again.png"))
    tokenizer = CM3.from_pretrained("emoji", device="cpu").image_tokenizer
    assert out.startswith(f"64 codes out of {tokenizer.num_codes}")
    assert Image.open(tmp_path / "again.png").size == tokenizer.size


def test_every_cell_of_the_notebook_runs():
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 6 and not any(cell["outputs"] for cell in notebook["cells"] if "outputs" in cell)
    here: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "tour.ipynb", "exec"), here)


def test_every_example_is_tested():
    tests = Path(__file__).read_text(encoding="utf-8")
    assert all(path.name in tests for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))


@pytest.mark.slow  # a local cluster is started
def test_caption_with_ray(tmp_path: Path):
    pq, psutil = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("psutil")
    pytest.importorskip("ray")
    cm3, images = CM3.from_pretrained("emoji", device="cpu"), dict[str, bytes]()
    for i, image in enumerate(cm3.generate("a red apple", n=32, seed=1)):
        buffer = BytesIO()
        image.save(buffer, "PNG")
        images[f"apple{i:02}"] = buffer.getvalue()
    images["broken"] = b"no image"
    shards, out = tmp_path / "shards", tmp_path / "captions"
    shards.mkdir()
    with ShardWriter(str(shards / "%05d.tar"), maxcount=8, verbose=0) as writer:
        for key in sorted(images):
            writer.write({"__key__": key, "png": images[key]})
    command = [sys.executable, str(EXAMPLES / "caption_with_ray.py"), str(shards), "--out", str(out), "--batch", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as run:
        killed, end = None, time.monotonic() + 300
        while run.poll() is None and time.monotonic() < end:
            if killed is None:
                actors = [one for one in psutil.Process(run.pid).children(recursive=True) if "Captioner" in title(one)]
                if actors:
                    killed = actors[0]
                    killed.kill()
            time.sleep(0.05)
        run.kill()  # if it has not ended
        said = run.stdout.read() if run.stdout else ""
    assert run.returncode == 0
    assert killed is not None, "no worker was seen"
    assert said.split()[-2:] == ["33", "captioned"]
    rows = [row for file in out.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert {row["__key__"] for row in rows} == set(images)
    assert len(rows) == len(images)  # each once
    expected = dict(zip(sorted(images)[:32], cm3.caption([images[key] for key in sorted(images)[:32]]), strict=True))
    assert {row["__key__"]: row["text"] for row in rows if not row["error"]} == expected
    assert [row["__key__"] for row in rows if row["error"]] == ["broken"]
    for file in sorted(out.glob("*.parquet"))[:1]:
        lost = pq.read_table(file).num_rows
        file.unlink()
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0
    assert again.stdout.split()[-2:] == [str(lost), "captioned"]


def title(process: Any) -> str:
    """What a process calls itself; nothing if it has gone."""
    psutil = pytest.importorskip("psutil")
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
