"""The plan of a run: counted from the real modules, and measured on the machine."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cm3.model.config import PRESETS, CM3Config
from cm3.model.transformer import CM3ForCausalLM
from documents import write_shards
from train import lm
from train.language import plan
from train.language.config import LMConfig
from train.language.lora import Lora
from train.language.loss import LMLearner
from train.language.packing import Batch
from train.language.plan import measure, plan_run, training_memory
from train.runtime.config import override
from train.runtime.flops import flops_per_token, matrix_parameters, muon_flops, step_flops, utilisation
from train.runtime.optim import LearningRates, optimizers

RATES = LearningRates(1e-3, 1e-3)
FAMILIES = [
    {},
    {"num_key_value_heads": 4, "activation": "relu", "norm": "layernorm"},
    {"tie_word_embeddings": True, "position": "learned"},
]


@pytest.fixture(scope="module")
def folder(vq_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("tokens"), vq_folder, [40 + i % 30 for i in range(60)])


@pytest.fixture(scope="module")
def config(folder: Path) -> LMConfig:
    return override(
        LMConfig(),
        {
            "data.folder": str(folder),
            "preset": "tiny",
            "data.seq_len": 128,
            "batch_tokens": 512,
            "steps": 100,
            "precision": "fp32",
        },
    )


def batch_of(rows: int, length: int) -> Batch:
    ids = torch.randint(1, 400, (rows, length), generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.ones(rows, length), torch.ones_like(ids), torch.arange(length).expand(rows, -1))


def test_parameters_that_every_token_meets_are_those_of_the_linear_layers():
    for name in PRESETS:
        with torch.device("meta"):
            model = CM3ForCausalLM(CM3Config.preset(name))
        linear = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)}
        assert matrix_parameters(model.config) == sum(linear.values()), name


@pytest.mark.parametrize("fields", FAMILIES)
def test_flops_of_a_token_are_those_that_pytorch_counts(fields: dict):
    model = CM3ForCausalLM(CM3Config.preset("tiny", **fields))
    model.set_attn_implementation("eager")
    learner, batch = LMLearner(model), batch_of(2, 64)
    with FlopCounterMode(display=False) as counter:
        learner(batch).total.backward()
    assert counter.get_total_flops() == pytest.approx(2 * 64 * flops_per_token(model.config, 64), rel=0.03)


@pytest.mark.parametrize("fields", FAMILIES)
def test_flops_of_muon_are_those_that_pytorch_counts(fields: dict):
    model = CM3ForCausalLM(CM3Config.preset("tiny", **fields))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made = optimizers(model, "muon", RATES, (0.9, 0.95), 0.0)
    with FlopCounterMode(display=False) as counter:
        made[0].step()
    assert counter.get_total_flops() == pytest.approx(muon_flops(model.config), rel=0.01)
    both, one = (step_flops(model.config, 64, 1000, some) for some in (made, made[1:]))
    assert one == 1000 * flops_per_token(model.config, 64) and both == one + muon_flops(model.config)


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
@pytest.mark.parametrize("frozen", [False, True])
def test_memory_is_what_tensors_really_take(matrices: str, frozen: bool):
    model = CM3ForCausalLM(CM3Config.preset("tiny"))
    model.lm_head.requires_grad_(not frozen)
    made = optimizers(model, matrices, RATES, (0.9, 0.95), 0.0)
    held = training_memory(model, made, True, 1)
    LMLearner(model)(batch_of(1, 16)).total.backward()
    for one in made:
        one.step()

    def size(tensors: Sequence[torch.Tensor]) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    parameters = list(model.parameters())
    states = [v for one in made for state in one.state.values() for v in state.values() if v.numel() > 1]
    assert held.weights == size(parameters)
    assert held.gradients == held.average == size([p.grad for p in parameters if p.grad is not None])
    assert held.optimizers == size(states)
    assert training_memory(model, made, False, 4) == (
        -(-held.weights // 4),
        -(-held.gradients // 4),
        held.optimizers // 4,
        0,
    )


def test_what_is_saved_for_the_backward_pass_grows_with_the_rows_and_shrinks_with_recomputing(config: LMConfig):
    learner = LMLearner(CM3ForCausalLM(CM3Config.preset("tiny")))
    learner.model.set_attn_implementation("eager")
    one, four = (measure(learner, batch_of(rows, 64), config, torch.device("cpu"), 1) for rows in (1, 4))
    assert four.seconds > 0 and four.saved == pytest.approx(4 * one.saved, rel=0.2)
    scores = 2 * 4 * 4 * 64 * 64 * 4  # of attention after the softmax: layers, rows, heads, T, T, bytes
    assert scores < four.saved < 20 * scores
    assert all(p.grad is None for p in learner.parameters())
    learner.model.activation_checkpointing_enable({"use_reentrant": False})
    assert measure(learner.train(), batch_of(4, 64), config, torch.device("cpu"), 1).saved < 0.5 * four.saved


@pytest.mark.parametrize("find", [False, True])
def test_a_plan_says_what_the_run_takes(config: LMConfig, find: bool, capsys: pytest.CaptureFixture):
    figures = plan_run(config, find)
    assert [one["micro_batch_size"] for one in figures["tried"]] == ([1, 2, 4] if find else [4])
    assert figures["parameters"] == figures["trained"] > 20_000 and figures["tokens"] == 51_200
    assert figures["weights_gib"] * 2**30 == 4 * figures["parameters"] == figures["gradients_gib"] * 2**30
    assert figures["optimizers_gib"] <= 2 * figures["weights_gib"] and figures["average_gib"] == 0
    assert 0 < figures["seconds_per_step"] < 5
    assert figures["hours"] == pytest.approx(figures["seconds_per_step"] * 100 / 3600)
    assert figures["tokens_per_second"] == pytest.approx(512 / figures["seconds_per_step"])
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("parameters", "micro-batch of", "hours", "tokens per second"))


def test_sharded_runs_hold_a_share_on_each_device(config: LMConfig):
    one, two = (
        plan_run(override(config, {"distributed.processes": world, "distributed.strategy": "fsdp"}), False)
        for world in (1, 2)
    )
    assert two["weights_gib"] == one["weights_gib"] / 2
    assert two["micro_batch_size"] == 2


def test_a_plan_with_adapters_trains_them_alone(config: LMConfig):
    figures = plan_run(replace(config, lora=Lora(rank=2)), False)
    assert figures["trained"] < 0.3 * figures["parameters"]
    assert figures["gradients_gib"] < 0.3 * figures["weights_gib"]


def test_a_plan_of_a_run_from_another_model(tiny_folder: Path, tmp_path: Path):
    from cm3 import CM3
    from cm3.tokens.document import Document, Image, Text
    from train.documents.shards import ShardWriter, finish

    pipeline = CM3.from_pretrained(tiny_folder, device="cpu")
    writer = ShardWriter(pipeline.text_tokenizer, pipeline.vocab)
    for _ in range(8):
        writer.add(Document((Text("a red apple"), Image(torch.ones(4, 4, dtype=torch.long)))))
    writer.save(tmp_path)
    finish(tmp_path, pipeline.text_tokenizer, pipeline.vocab, pipeline.image_tokenizer)
    figures = plan_run(
        override(
            LMConfig(),
            {"data.folder": str(tmp_path), "start": str(tiny_folder), "data.seq_len": 64, "batch_tokens": 128},
        ),
        False,
    )
    assert figures["parameters"] == sum(p.numel() for p in pipeline.model.parameters())


def test_a_model_far_too_large_is_planned_without_being_built(config: LMConfig, monkeypatch, capsys):
    def never(*_: object) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(plan, "learner_of", never)
    large = override(config, {"preset": "cm3leon-7b", "distributed.strategy": "fsdp", "distributed.processes": 4})
    monkeypatch.setattr(plan, "free_memory", lambda device: 16 * 2**30)
    started = time.process_time()
    figures = plan_run(large, False)
    assert time.process_time() - started < 10  # of CPU: the machine may be busy
    assert 6e9 < figures["parameters"] < 8e9 and "hours" not in figures
    assert figures["weights_gib"] * 2**30 == figures["parameters"]  # 4 bytes on 4 devices
    assert "not measured: weights, gradients and optimizer state take" in capsys.readouterr().out


def test_adapters_of_a_large_model_take_little_more_than_its_weights(config: LMConfig, monkeypatch):
    monkeypatch.setattr(plan, "learner_of", None)
    monkeypatch.setattr(plan, "free_memory", lambda device: 16 * 2**30)
    figures = plan_run(replace(config, preset="cm3leon-7b", lora=Lora(rank=8)), False)
    assert figures["trained"] < 0.01 * figures["parameters"]
    assert figures["gradients_gib"] + figures["optimizers_gib"] < 0.1 * figures["weights_gib"]


def test_rows_that_do_not_fit_are_said_and_none_at_all_is_an_error(config: LMConfig, monkeypatch, capsys):
    real = plan.measure

    def small(learner: LMLearner, batch: Batch, *rest) -> plan.Speed:
        if len(batch.ids) > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(learner, batch, *rest)

    monkeypatch.setattr(plan, "measure", small)
    limit = 2
    assert [one["micro_batch_size"] for one in plan_run(config, True)["tried"]] == [1, 2]
    assert "a micro-batch of 4 sequences does not fit into memory" in capsys.readouterr().out
    limit = 0
    with pytest.raises(ValueError, match="not even 1 sequences of 128 tokens fit: set activation_checkpointing=true"):
        plan_run(config, True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batch_tokens": 500}, "batch_tokens is 500, but must be a multiple of data.seq_len x processes"),
        ({"data.seq_len": 1024, "batch_tokens": 1024}, "data.seq_len is 1024, but the model has 128 positions"),
        ({"lora": Lora(2, targets=("x",))}, "lora.targets x"),
        ({"preset": "huge"}, "unknown preset 'huge'"),
    ],
)
def test_what_would_stop_the_run_stops_its_plan(config: LMConfig, change: dict, match: str):
    with pytest.raises(ValueError, match=match):
        plan_run(override(config, change), False)


def test_a_dry_run_from_the_command_line_writes_nothing(config: LMConfig, tmp_path: Path, capsys):
    overrides = [
        f"data.folder='{config.data.folder}'",
        "preset=tiny",
        "data.seq_len=128",
        "batch_tokens=256",
        "precision=fp32",
    ]
    lm.main(tmp_path / "out", None, None, dry_run=True, find_batch=False, overrides=overrides)
    assert "hours" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_utilisation_is_known_for_known_gpus_alone(monkeypatch: pytest.MonkeyPatch):
    config = CM3Config.preset("tiny")
    assert utilisation(config, 64, 1000.0, torch.device("cpu")) == {}
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("GT 1", 0)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        want = {"mfu": 1000 * flops_per_token(config, 64) / peak} if peak else {}
        assert utilisation(config, 64, 1000.0, torch.device("cuda")) == want
