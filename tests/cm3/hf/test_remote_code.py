"""What a folder owes to tools that know only transformers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cm3 import CM3
from cm3.hf.model_folder import EMBEDDED
from cm3.hf.remote_code import code
from tests.helpers.checkout import ROOT

PIPELINES = """
import sys, warnings
for name in ("cm3", "tokenizer_image"):
    sys.modules[name] = None  # not importable
import torch, transformers
from transformers import (AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor,
    AutoTokenizer, pipeline)
from transformers.pipelines import any_to_any
transformers.utils.logging.set_verbosity_error()
folder, trust = sys.argv[1], dict(trust_remote_code=True)
assert AutoConfig.from_pretrained(folder, **trust).hidden_size == 256
ids = AutoTokenizer.from_pretrained(folder, **trust)("a red apple", return_tensors="pt")
assert AutoModel.from_pretrained(folder, **trust)(**ids).last_hidden_state.shape == (1, 3, 256)
alone = AutoModelForCausalLM.from_pretrained(folder, **trust)
assert alone.generate(**ids, max_new_tokens=2, min_new_tokens=2).shape == (1, 5)
processor = AutoProcessor.from_pretrained(folder, **trust)
model = AutoModelForMultimodalLM.from_pretrained(folder, **trust)
inputs = processor(text="a red apple", generation_mode="image", return_tensors="pt")
drawn = model.decode_image_tokens(model.generate(**inputs, generation_mode="image", do_sample=False))
image = processor.post_process_multimodal_output(drawn, generation_mode="image")[0]
print("drawn", image.size)
any_to_any.requires_backends = lambda *names: None  # it asks for torchvision, which nothing here needs
asked = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]}]
tell = {"generation_mode": "text"}
for task in ("any-to-any", "image-text-to-text"):
    ask = pipeline(task, model=folder, **trust)
    print(task, ask(text=asked, return_full_text=False, generate_kwargs=tell)[0]["generated_text"].strip())
draw = pipeline("any-to-any", model=folder, **trust)
said = [{"role": "user", "content": [{"type": "text", "text": "a red apple"}]}]
print("drawn", draw(text=said, generation_mode="image")[0]["generated_image"].size)
assert "torchvision" not in sys.modules
"""


def test_a_folder_opens_without_this_package_and_runs_in_transformers_pipelines(
    folder: Path, tmp_path: Path, emoji: CM3, processor: Any, multimodal: Any
):
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", PIPELINES, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    inputs = processor(text="a red apple", generation_mode="image", return_tensors="pt")
    drawn = multimodal.decode_image_tokens(multimodal.generate(**inputs, generation_mode="image", do_sample=False))
    said = emoji.answer(processor.image_processor.postprocess(drawn)[0], "What is this?")
    size = f"drawn {emoji.image_tokenizer.size}"
    lines = [size, f"any-to-any {said}", f"image-text-to-text {said}", size]
    assert done.stdout.splitlines() == lines


def test_a_folder_carries_the_packages_own_code_and_nothing_that_leads_back_to_it(folder: Path):
    for name, content in code().items():
        assert (folder / name).read_text() == content
        assert not re.search(r"^\s*(from|import) (cm3|tokenizer_image)\b", content, re.MULTILINE)
    config = json.loads((folder / "config.json").read_text())
    for entry in config["auto_map"].values():
        module, _, name = entry.partition(".")
        assert f"class {name}(" in (folder / f"{module}.py").read_text()


def test_the_embedded_folder_names_no_code():
    for path in (EMBEDDED / "emoji").glob("*.json"):
        assert "auto_map" not in path.read_text()
    assert not list((ROOT / "cm3" / "pretrained").rglob("*.py"))


TWO_RANKS = """
import os, sys, warnings
import torch
import torch.distributed as dist
import cm3.hf.auto
from transformers import AutoModelForCausalLM
warnings.simplefilter("ignore")
dist.init_process_group("gloo")
assert dist.get_world_size() == 2
ids = torch.arange(64, 104)[None]
whole = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
divided = AutoModelForCausalLM.from_pretrained(sys.argv[1], tp_plan="auto").eval()
with torch.inference_mode():
    gap = (whole(ids).logits - divided(ids).logits).abs().max().item()
local = divided.model.layers[0].mlp.up_proj.weight.to_local().shape[0]
os.write(1, f"gap {gap} {local}\\n".encode())  # whole, whatever the other process prints
dist.barrier()
"""


@pytest.mark.slow
def test_two_processes_with_half_of_each_layer_give_the_logits_of_one(folder: Path, tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(script), str(folder)], capture_output=True, text=True, env=environment, timeout=300
    )
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("gap")]
    assert len(rows) == 2, done.stderr[-2000:]
    assert all(float(gap) < 1e-4 and int(local) == 352 for _, gap, local in rows)
