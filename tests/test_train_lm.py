"""Training the language model: it learns, resumes to the same bits, and refuses what does not fit."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cm3 import CM3
from cm3.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train import lm
from train.lm import Batch, Config, batches, build_model, collate, losses, rate, train
from train.objective import KINDS, Objective, Row, training_row
from train.shards import read_shard

DOCUMENTS = 16


@pytest.fixture(scope="module")
def few(token_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first documents of the session's token shards."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("meta.json", "tokenizer.json"):
        shutil.copy(token_shards / name, folder)
    arrays = load_file(token_shards / "train.safetensors")
    offsets = arrays["offsets"][: DOCUMENTS + 1].clone()
    ids, spans = arrays["ids"][: offsets[-1]].clone(), arrays["spans"][:DOCUMENTS].clone()
    save_file({"ids": ids, "offsets": offsets, "spans": spans}, folder / "train.safetensors")
    return folder


@pytest.fixture(scope="module")
def config(few: Path, vq_folder: Path) -> Config:
    """The defaults, scaled down to four steps of a tiny model."""
    return Config(str(few), str(vq_folder), preset="tiny", model={"max_position_embeddings": 256},
                  objective={"first_codes": 4}, steps=4, batch_size=8, warmup=1, precision="fp32", log_every=1,
                  save_every=2, sample_every=100, prompts=("a red apple",))  # fmt: skip


@pytest.fixture(scope="module")
def vocab(config: Config) -> Vocab:
    layout = read_shard(Path(config.data))[1]["vocab"]
    return Vocab(layout["num_special_tokens"], layout["text_vocab_size"], layout["image_vocab_size"])


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("run")
    train(config, out)
    return out


@pytest.fixture
def killed_at(dies_at: Callable[..., None]) -> Callable[..., None]:
    """killed_at(step, config, out): a run that dies in a step."""
    return partial(dies_at, lm, "rate")


def logged(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def same(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))  # fmt: skip


def test_a_run_logs_each_kind_of_token_and_leaves_a_model_to_load(run: Path):
    assert {path.name for path in run.iterdir()} == {
        "config.json", "log.jsonl", "checkpoint.pt", "model", "samples-000004.png"}  # fmt: skip
    rows = logged(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(set(row["loss"]) == set(KINDS) and row["tokens_per_second"] > 0 for row in rows)
    model = CM3.from_pretrained(run / "model", device="cpu")
    assert model.grid == (4, 4) and model.context == 256


def test_it_learns_a_few_documents_by_heart(config: Config, tmp_path: Path):
    config = replace(config, steps=60, batch_size=DOCUMENTS, lr=1e-2, log_every=5, save_every=60,
                     objective={"free": 0.0, "cm3": 0.0, "prompt": 1.0, "first_codes": 4})  # fmt: skip
    train(config, tmp_path)
    first, *_, last = (row["loss"] for row in logged(tmp_path))
    for kind in KINDS:
        assert last[kind] < 0.6 * first[kind], (kind, first, last)


def test_a_killed_run_goes_on_to_the_same_bits(config: Config, run: Path, tmp_path: Path, killed_at):
    killed_at(3, config, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    train(config, tmp_path)
    one, two = (load_file(out / "model" / "model.safetensors") for out in (run, tmp_path))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert [row["loss"] for row in logged(tmp_path)][-2:] == [row["loss"] for row in logged(run)][-2:]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("first", [1, 2, 5])
def test_batches_from_a_step_on_are_those_that_skipping_gives(config: Config, vocab: Vocab, first: int):
    shard, _ = read_shard(Path(config.data))
    skipped = itertools.islice(batches(shard, vocab, config), first, first + 3)  # two steps an epoch
    assert all(map(same, skipped, batches(shard, vocab, config, first)))


def test_an_epoch_holds_every_document_once_and_the_next_another_order(config: Config, vocab: Vocab):
    config = replace(config, objective={"free": 0.0, "cm3": 0.0}, micro_batches=1)
    shard, _ = read_shard(Path(config.data))
    documents = sorted(sorted(shard.document(i)[0]) for i in range(DOCUMENTS))

    def read(steps: list[list[Batch]]) -> list[list[int]]:
        rotated = [ids[ids != vocab.pad].tolist() for step in steps for part in step for ids in part.ids]
        markup = range(vocab.first_mask, vocab.first_text)
        return sorted(sorted(id for id in ids if id not in markup) for ids in rotated)

    steps = list(itertools.islice(batches(shard, vocab, config), 4))
    assert read(steps[:2]) == read(steps[2:]) == documents
    assert not same(steps[0], steps[2])


def test_another_seed_gives_other_batches(config: Config, vocab: Vocab):
    shard, _ = read_shard(Path(config.data))
    assert not same(next(batches(shard, vocab, config)), next(batches(shard, vocab, replace(config, seed=1))))


def test_micro_batches_are_sorted_by_length_and_hold_the_whole_batch(config: Config, vocab: Vocab):
    shard, _ = read_shard(Path(config.data))
    parts = next(batches(shard, vocab, replace(config, micro_batches=3)))
    assert [len(part.ids) for part in parts] == [3, 3, 2]
    assert [part.ids.shape[1] for part in parts] == sorted(part.ids.shape[1] for part in parts)


def test_padding_is_on_the_right_and_weighs_nothing(vocab: Vocab):
    rows = [Row(np.full(n, 100), np.ones(n, np.float32), np.ones(n, int)) for n in (3, 9)]
    batch = collate(rows, vocab.pad)
    assert batch.ids.shape == batch.weights.shape == batch.kinds.shape == (2, 16)
    assert batch.ids[0].tolist() == [100] * 3 + [vocab.pad] * 13
    assert batch.weights.sum(1).tolist() == batch.kinds.sum(1).tolist() == [3, 9]


def test_losses_are_the_weighted_cross_entropies_of_the_counted_tokens(config: Config, vocab: Vocab):
    shard, meta = read_shard(Path(config.data))
    model = build_model(config, meta, ImageTokenizer.from_pretrained(config.image_tokenizer)).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    rng = np.random.default_rng(0)
    batch = collate([training_row(*shard.document(i), vocab, Objective(), rng) for i in range(4)], vocab.pad)
    total, sums, counts = losses(model, batch)
    log_probs = model(input_ids=batch.ids).logits[:, :-1].log_softmax(-1)
    errors = -log_probs.gather(2, batch.ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(total, (errors * batch.weights[:, 1:]).sum(), rtol=1e-4, atol=1e-3)
    for kind in range(len(KINDS)):
        here = batch.kinds[:, 1:] == kind + 1
        assert counts[kind] == here.sum()
        torch.testing.assert_close(sums[kind], errors[here].sum().detach(), rtol=1e-4, atol=1e-3)


def test_embeddings_of_codes_that_look_alike_start_alike(config: Config):
    _, meta = read_shard(Path(config.data))
    tokenizer = ImageTokenizer.from_pretrained(config.image_tokenizer)
    likeness = tokenizer.model.quantize.codebook() @ tokenizer.model.quantize.codebook().T

    def agreement(codebook_init: bool) -> float:
        model = build_model(replace(config, codebook_init=codebook_init), meta, tokenizer)
        rows = torch.nn.functional.normalize(model.model.embed_tokens.weight.data[-tokenizer.num_codes :], dim=-1)
        upper = torch.triu_indices(len(rows), len(rows), 1)
        pairs = torch.stack([(rows @ rows.T)[*upper], likeness[*upper]])
        return torch.corrcoef(pairs)[0, 1].item()

    assert agreement(True) > 0.4 > 0.2 > abs(agreement(False))


def test_the_rate_warms_up_stays_and_falls(config: Config):
    config = replace(config, steps=100, warmup=10, decay=0.4)
    rates = [rate(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert set(rates[10:61]) == {1.0}
    assert rates[60:] == pytest.approx([i / 40 for i in range(40, 0, -1)])


def test_shards_of_another_image_tokenizer_are_refused(config: Config, tiny_folder: Path, few: Path, tmp_path: Path):
    shutil.copytree(few, tmp_path / "few")
    meta = json.loads((few / "meta.json").read_text())
    (tmp_path / "few" / "meta.json").write_text(json.dumps(meta | {"image_tokenizer": "0123456789ab"}))
    with pytest.raises(ValueError, match=r"few was made by image tokenizer 0123456789ab, not by .*image_tokenizer \("):
        train(replace(config, data=str(tmp_path / "few")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["train.safetensors", "meta.json", "tokenizer.json"])
def test_a_missing_file_of_the_shards_is_named(few: Path, tmp_path: Path, name: str):
    shutil.copytree(few, tmp_path / "few")
    (tmp_path / "few" / name).unlink()
    with pytest.raises(ValueError, match=rf"few/{name} is missing: run python -m train\.tokenize_data"):
        read_shard(tmp_path / "few")


def test_a_batch_larger_than_the_shard_is_refused(config: Config, tmp_path: Path):
    with pytest.raises(ValueError, match="16 documents do not fill a batch of 17"):
        train(replace(config, batch_size=17), tmp_path)


def test_a_gradient_that_is_not_finite_stops_the_run(config: Config, tmp_path: Path):
    with pytest.raises(ValueError, match=r"the gradient is (nan|inf) at step \d: lower muon_lr and lr"):
        train(replace(config, lr=1e30), tmp_path)


@pytest.mark.parametrize(("overrides", "match"), [
    (["data=nowhere"], "nowhere/train.safetensors is missing"),
    (["preset=huge"], "unknown preset 'huge'"),
    (["model.wide=3"], "unknown field wide"),
    (["objective.answers=3"], "unknown .*answers"),
    (["stepz=3"], "unknown config keys: stepz"),
])  # fmt: skip
def test_mistakes_end_the_script_with_one_line(config: Config, tmp_path: Path, overrides: list[str], match: str):
    given = [f"data='{config.data}'", f"image_tokenizer='{config.image_tokenizer}'", "preset=tiny"]
    with pytest.raises(SystemExit, match=f"lm: {match}") as error:
        lm.main(tmp_path, None, None, given + overrides)
    assert "\n" not in str(error.value.code)


def test_the_data_folder_of_the_command_line_counts(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"it's here/train\.safetensors is missing"):
        lm.main(tmp_path, None, "it's here", None)


def test_matrices_inside_the_blocks_have_the_optimiser_that_is_asked_for(config: Config, monkeypatch):
    shard, meta = read_shard(Path(config.data))
    model = build_model(config, meta, ImageTokenizer.from_pretrained(config.image_tokenizer))
    for matrices, fast, kind in (("muon", False, torch.optim.Muon), ("adamw", True, torch.optim.AdamW),
                                 ("auto", True, torch.optim.Muon), ("auto", False, torch.optim.AdamW)):  # fmt: skip
        monkeypatch.setattr(lm, "bf16_is_fast", lambda device, fast=fast: fast)
        inside, rest = lm.optimizers(model, replace(config, matrices=matrices))
        assert type(inside) is kind and type(rest) is torch.optim.AdamW
        held = [p for one in (inside, rest) for group in one.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in model.parameters()} and len(held) == len({*map(id, held)})
    with pytest.raises(ValueError, match="'sgd': choose auto, muon or adamw"):
        lm.optimizers(model, replace(config, matrices="sgd"))


def test_it_learns_with_adamw_alone_too(config: Config, tmp_path: Path):
    train(replace(config, matrices="adamw", steps=40, save_every=100, decay=0.2), tmp_path)
    rows = [row["loss"] for row in logged(tmp_path)]
    assert rows[-1]["other codes"] < 0.8 * rows[0]["other codes"]
