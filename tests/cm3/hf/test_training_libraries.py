"""peft and trl train a model folder of ours as any other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer

from cm3 import CM3
from cm3.tokens.document import Document, Image, Text
from cm3.tokens.encoding import to_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "emoji"
    CM3.from_pretrained("emoji", device="cpu").save_pretrained(path)
    return path


def test_peft_trains_adapters_and_merges_them(folder: Path, tmp_path: Path):
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    pipeline = CM3.from_pretrained(folder, device="cpu")
    image = Image(torch.arange(64).view(8, 8))
    ids = torch.tensor([pipeline.prompts.ids(Document((Text("a purple camel"), image)), to_ids)])
    tuned: Any = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([one for one in tuned.parameters() if one.requires_grad], lr=5e-3)
    losses: list[float] = []
    for _ in range(5):
        loss = tuned(input_ids=ids, labels=ids).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.5
    tuned.save_pretrained(tmp_path / "adapter")
    again: Any = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    merged = tuned.merge_and_unload()
    with torch.inference_mode():
        torch.testing.assert_close(merged(ids).logits, again(ids).logits, atol=1e-3, rtol=1e-3)
    merged.save_pretrained(folder.parent / "merged")
    assert AutoModelForCausalLM.from_pretrained(folder.parent / "merged")(ids).loss is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of trl's own
def test_trls_trainer_runs_on_what_the_processor_gives(folder: Path, tmp_path: Path):
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    processor: Any = AutoProcessor.from_pretrained(folder)
    shown: Any = AutoModelForMultimodalLM.from_pretrained(folder)
    rows: list[dict[str, Any]] = []
    for image in CM3.from_pretrained(folder, device="cpu").generate("a cow", n=8):
        messages = [{"role": "user", "content": [{"type": "image", "image": image}]}]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_tensors="pt")
        prompt = shown.with_images(inputs["input_ids"], inputs["pixel_values"])[0].tolist()
        answer = [*processor.tokenizer("a purple camel")["input_ids"], processor.tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + answer, "completion_mask": [0] * len(prompt) + [1] * len(answer)})
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 3 and losses[-1] < losses[0]
