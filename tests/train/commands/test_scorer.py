"""Training the scorer: it learns which text belongs to which image, resumes to the same bits, refuses what does not
fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from checkpoint_files import same_tensors
from cm3.model.scorer import Scorer
from cm3.tokens.document import Document, Image, Text
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from documents import write_shards
from tokenizer_image import ImageTokenizer
from train import scorer
from train.contrastive import run
from train.contrastive.config import ScorerTrainingConfig
from train.contrastive.loss import (
    contrastive_loss,
    encode_by_length,
    retrieval,
    with_code_noise,
    with_patch_dropout,
)
from train.contrastive.pairs import Names, batch_indices, names_of, pairs_of
from train.contrastive.run import train
from train.documents.shard_files import read_meta
from train.documents.shards import NUM_SPECIAL, Shards, ShardWriter, finish
from train.images.samples import read_samples
from train.runtime import config as configs
from train.runtime.config import override

TINY = {
    "embedding_size": 8,
    "hidden_size": 16,
    "image_layers": 1,
    "text_layers": 1,
    "heads": 2,
    "intermediate_size": 32,
    "space": 16,
}


@pytest.fixture(scope="module")
def config(token_shards: Path, vq_folder: Path) -> ScorerTrainingConfig:
    """Six steps of a tiny scorer."""
    return configs.fill(
        ScorerTrainingConfig,
        {
            "image_tokenizer": str(vq_folder),
            "model": TINY,
            "steps": 6,
            "batch_size": 16,
            "data": {"folder": str(token_shards)},
            "optim": {"warmup_steps": 2},
            "checkpoint": {"every": 2},
            "eval": {"every": 2},
            "log": {"every": 1},
        },
    )


@pytest.fixture(scope="module")
def finished(config: ScorerTrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("run")
    train(config, out)
    return out


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """killed_at(step, config, out): a run that dies in a step."""

    def kill(last: int, config: ScorerTrainingConfig, out: Path) -> None:
        def dies(step: int, *settings: Any) -> list[int]:
            if step == last:
                raise KeyboardInterrupt
            return batch_indices(step, *settings)

        with monkeypatch.context() as patch:
            patch.setattr(run, "batch_indices", dies)
            with pytest.raises(KeyboardInterrupt):
                train(config, out)

    return kill


def logged(out: Path, key: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if key in row]


def units(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def test_a_run_logs_retrieval_and_leaves_a_scorer(config: ScorerTrainingConfig, finished: Path, token_shards: Path):
    assert {path.name for path in finished.iterdir()} == {"config.json", "log.jsonl", "checkpoints", "model"}
    assert [row["step"] for row in logged(finished, "loss")] == [1, 2, 3, 4, 5, 6]
    found = logged(finished, "held_out_retrieval")
    assert [row["step"] for row in found] == [2, 4, 6]
    assert found[0]["held_out_retrieval"].keys() == {"top1", "top5"}
    trained, meta = Scorer.from_pretrained(finished / "model"), read_meta(token_shards)
    trained.check(meta["text_tokenizer"], meta["image_tokenizer"])
    assert trained.config.image_grid == (4, 4) and trained.config.hidden_size == 16


@pytest.mark.parametrize("step", [3, 4])
def test_a_killed_run_goes_on_to_the_same_bits(
    config: ScorerTrainingConfig, finished: Path, killed_at: Callable, step: int, tmp_path: Path
):
    killed_at(step, config, tmp_path)
    train(config, tmp_path)
    assert same_tensors(finished, tmp_path)
    assert (finished / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "model" / "model.safetensors"
    ).read_bytes()
    assert [row["loss"] for row in logged(finished, "loss")] == [row["loss"] for row in logged(tmp_path, "loss")]


def test_it_learns_which_text_belongs_to_which_image(vq_folder: Path, tmp_path: Path):
    words = ["a red apple", "a blue car", "a cat", "تفاحة", "سيارة زرقاء", "قطة"]
    image, text = ImageTokenizer.from_pretrained(vq_folder), TextTokenizer.train(words, 300)
    vocab, rng = Vocab(NUM_SPECIAL, len(text), image.num_codes), np.random.default_rng(0)
    writer = ShardWriter(text, vocab)
    for i, codes in enumerate(rng.integers(0, image.num_codes, (3, 16)).tolist()):
        writer.sample(code=str(i))
        for name in (words[i], words[i + 3]):
            writer.add(Document((Text(name), Image(torch.tensor([codes])))))
    writer.save(tmp_path)
    finish(tmp_path, text, vocab, image, image_tokenizer_name=str(vq_folder))
    config = override(
        ScorerTrainingConfig(model=TINY, steps=60, batch_size=6),
        {"data.folder": str(tmp_path), "optim.lr": 1e-2, "optim.warmup_steps": 5, "augment.code_noise": 0.1},
    )
    trained = Scorer.from_pretrained(train(config, tmp_path / "run"))
    pairs = pairs_of(Shards(tmp_path))
    scores = torch.stack([trained.score([words], pairs.codes[::2].long()) for words in pairs.texts])  # [6, 3]
    assert scores.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]


def test_pairs_are_the_captioned_documents_alone(token_shards: Path, sample: Path):
    shards = Shards(token_shards)
    pairs, text = pairs_of(shards), shards.text_tokenizer()
    asked = int((shards.spans[:, 0, 1] > 0).sum())
    assert len(pairs.texts) == len(pairs.codes) == len(pairs.concepts) == len(shards) - asked > 0
    known = {facts["code"] for _, _, facts in read_samples(sample / "train")}
    assert set(pairs.concepts) == known and pairs.codes.shape[1:] == (4, 4)
    document = shards.document(next(i for i in range(len(shards)) if not shards.spans[i].any()))
    assert text.decode(pairs.texts[0]) == text.decode(shards.vocab().ids_to_text(document.ids[1:-20]))


def test_documents_of_another_form_are_no_pairs(vq_folder: Path, tmp_path: Path):
    write_shards(tmp_path, vq_folder, [12, 40, 41], [12], asked=0.0)
    pairs = pairs_of(Shards(tmp_path))
    assert [len(text) for text in pairs.texts] == [19, 20]
    assert len(set(pairs.concepts)) == 2  # rows of the manifest without a code or a name: each shows its own
    assert sorted(names_of(pairs).concepts) == sorted(set(pairs.concepts))
    with pytest.raises(ValueError, match="no captioned images in its split 'held_out'"):
        pairs_of(Shards(tmp_path, "held_out"))


def test_pairs_of_one_concept_are_no_negatives():
    texts, images = units([1.0, 0.0], [1.0, 0.1], [0.0, 1.0]), units([1.0, 0.0], [1.0, 0.1], [0.0, 1.0])
    scale = torch.tensor(10.0)
    assert contrastive_loss(texts, images, scale, ["a", "a", "b"]) < 1e-3
    assert contrastive_loss(texts, images, scale, ["a", "c", "b"]) > 0.1
    apart = units([1.0, 0.0], [0.6, 0.8])
    text = apart.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(contrastive_loss(text, apart, scale, ["a", "a"]), text)
    assert gradient.abs().max() < 1e-6


def test_the_loss_of_different_concepts_is_that_of_clip():
    generator = torch.Generator().manual_seed(0)
    texts, images = (torch.nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=-1) for _ in "ab")
    logits, own = 7 * texts @ images.T, torch.arange(5)
    cross = torch.nn.functional.cross_entropy
    expected = (cross(logits, own) + cross(logits.T, own)) / 2
    assert torch.allclose(contrastive_loss(texts, images, torch.tensor(7.0), list("abcde")), expected)


def test_an_epoch_sees_every_pair_once():
    for epoch in range(2):
        seen = sum((batch_indices(epoch * 5 + i, 20, 4, seed=1) for i in range(5)), [])
        assert sorted(seen) == list(range(20)) != seen
    assert sorted(batch_indices(3, 5, 8, seed=0)) == [0, 1, 2, 3, 4]
    assert batch_indices(0, 20, 4, 1) != batch_indices(5, 20, 4, 1)


def test_replaced_codes_are_those_of_another_image_at_the_same_position():
    codes = torch.arange(5)[:, None, None] * 100 + torch.arange(16).view(4, 4)
    out = with_code_noise(codes, 0.6, torch.Generator().manual_seed(0))
    assert torch.equal(out % 100, codes % 100)
    assert 0 < (out != codes).float().mean() < 0.6
    assert torch.equal(with_code_noise(codes, 0.0, torch.Generator()), codes)


def test_some_patches_of_each_image_stay():
    patches = torch.arange(3 * 8.0).view(3, 8, 1)
    out = with_patch_dropout(patches, 0.5, torch.Generator().manual_seed(0))
    assert out.shape == (3, 4, 1)
    for kept, whole in zip(out, patches, strict=True):
        assert set(kept.flatten().tolist()) < set(whole.flatten().tolist()) and kept.unique().numel() == 4
    assert with_patch_dropout(patches, 0.99, torch.Generator()).shape == (3, 1, 1)


def test_texts_in_order_of_length_are_encoded_as_they_are(finished: Path):
    trained = Scorer.from_pretrained(finished / "model")
    texts = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [1, 2], [3]]
    assert torch.allclose(encode_by_length(trained, texts), trained.encode_texts(texts), atol=1e-6)
    assert encode_by_length(trained, texts[:2]).shape == (2, 16)


def test_retrieval_counts_the_right_name_among_all():
    class Fixed:
        def encode_codes(self, codes: torch.Tensor) -> torch.Tensor:
            return units([1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0])

        def encode_texts(self, texts: list[list[int]]) -> torch.Tensor:
            return units([1.0, 0.0], [0.0, 1.0])

    names = Names([[1], [2]], ["a", "b"])
    found = retrieval(cast(Scorer, Fixed()), names, torch.zeros(4, 2, 2), ["a", "b", "b", "nameless"])
    assert found == {"top1": 0.5, "top5": 0.75}


def test_bad_settings_are_refused(config: ScorerTrainingConfig, token_shards: Path, finished: Path, tmp_path: Path):
    for fields, message in (
        ({"augment.patch_dropout": 1.0}, "augment.patch_dropout is 1.0"),
        ({"batch_size": 1}, "at least 2"),
        ({"eval.every": 0}, "eval.every is 0, but must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            override(config, fields)
    with pytest.raises(ValueError, match="model.image_grid comes from the shards"):
        train(replace(config, model={"image_grid": [2, 2]}), tmp_path)
    with pytest.raises(ValueError, match="unknown config keys: width"):
        train(replace(config, model={"width": 2}), tmp_path)
    with pytest.raises(ValueError, match="holds another run: batch_size was 16, now 8"):
        train(replace(config, batch_size=8), finished)
    with pytest.raises(ValueError, match="meta.json is missing"):
        train(override(config, {"data.folder": str(tmp_path)}), tmp_path)
    with pytest.raises(SystemExit, match="scorer: "):
        scorer.main(tmp_path, data=str(tmp_path / "none"))
