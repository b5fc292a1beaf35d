"""Optimisers share the parameters, rates follow their schedule, bad steps are known, averages are averages."""

import json
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from train.language.loss import LMLearner
from train.runtime.optim import (
    EMA,
    GROUPS,
    LearningRates,
    SinglePrecisionMuon,
    StepSkipper,
    groups,
    lr_factor,
    optimizers,
    orthogonal,
)

RATES = LearningRates(matrices=0.1, rest=0.4)
FAMILIES = [
    {},
    {"tie_word_embeddings": True},
    {"position": "learned", "qk_norm_type": "layernorm"},
    {"norm": "layernorm", "qk_norm": False, "activation": "relu"},
]


def tiny(**fields: object) -> CM3ForCausalLM:
    return CM3ForCausalLM(CM3Config.preset("tiny", **fields))


@pytest.mark.parametrize("fields", FAMILIES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_each_parameter_is_in_one_group(fields: dict, wrapped: bool):
    model: nn.Module = LMLearner(tiny(**fields)) if wrapped else tiny(**fields)
    held = groups(model)
    every = [id(p) for name in GROUPS for p in held[name]]
    assert len(every) == len({*every}) and {*every} == {id(p) for p in model.parameters()}
    names = {id(p): name.removeprefix("model.") for name, p in model.named_parameters()}
    inside = {names[id(p)].split(".")[-2] for p in held["matrices"]}
    assert inside <= {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(held["matrices"]) == 2 * (6 if fields.get("activation") == "relu" else 7)
    assert all(p.ndim == 2 for p in held["matrices"])
    outside = {"embed_tokens", "embed_positions", "lm_head"}
    assert all("norm" in names[id(p)] or names[id(p)].split(".")[-2] in outside for p in held["rest"])


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_each_group_has_its_rate_and_matrices_alone_decay(matrices: str):
    model = tiny()
    made = optimizers(model, matrices, RATES, (0.8, 0.9), 0.05)
    assert [type(one) for one in made] == ([torch.optim.Muon] if matrices == "muon" else []) + [torch.optim.AdamW]
    found = {
        id(p): (group["lr"], group["peak"], group["weight_decay"])
        for one in made
        for group in one.param_groups
        for p in group["params"]
    }
    for name, parameters in groups(model).items():
        want = getattr(RATES, name)
        assert all(found[id(p)] == (want, want, 0.05 if name == "matrices" else 0.0) for p in parameters)
    assert all(group["betas"] == (0.8, 0.9) for group in made[-1].param_groups)


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_a_step_moves_every_parameter(matrices: str):
    model = tiny()
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    for one in optimizers(model, matrices, RATES, (0.9, 0.95), 0.0):
        one.step()
    assert all((p != old).all() for p, old in zip(model.parameters(), before, strict=True))


def test_muon_in_fp32_takes_the_steps_of_pytorchs_muon():
    moved = []
    for bf16, kind in ((False, SinglePrecisionMuon), (True, torch.optim.Muon)):
        torch.manual_seed(0)
        model = tiny()
        start = [p.detach().clone() for p in groups(model)["matrices"]]
        muon = optimizers(model, "muon", RATES, (0.9, 0.95), 0.1, bf16)[0]
        assert type(muon) is kind
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            for p in groups(model)["matrices"]:
                p.grad = torch.randn(p.shape, generator=generator)
            muon.step()
        moved.append(torch.cat([(p - old).flatten() for p, old in zip(groups(model)["matrices"], start, strict=True)]))
        assert muon.state_dict()["state"].keys() == {*range(len(start))}
    # bf16 holds 8 bits, and five iterations add up what it loses.
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.999
    assert moved[0].norm().item() == pytest.approx(moved[1].norm().item(), rel=0.01)


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_newton_schulz_brings_the_singular_values_near_one(shape: tuple[int, int]):
    some = (
        torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 1e3])[:, None, None]
    )
    made = orthogonal(some, (3.4445, -4.775, 2.0315), 5)
    assert made.shape == some.shape and torch.linalg.svdvals(made).sub(1).abs().max() < 0.5
    assert_close(made[0], orthogonal(some[0:1] * 1e6, (3.4445, -4.775, 2.0315), 5)[0], rtol=1e-4, atol=1e-4)


def test_frozen_parameters_are_left_out_and_a_model_that_is_all_frozen_is_refused():
    model = tiny().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is to be trained: all are frozen"):
        optimizers(model, "adamw", RATES, (0.9, 0.95), 0.0)
    model.model.layers[0].mlp.requires_grad_(True)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    (one,) = optimizers(model, "muon", RATES, (0.9, 0.95), 0.0)
    assert isinstance(one, torch.optim.Muon) and len(one.param_groups[0]["params"]) == 3


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="optim.matrix_optimizer is 'sgd': choose auto, muon or adamw"):
        optimizers(tiny(), "sgd", RATES, (0.9, 0.95), 0.0)


def test_wsd_warms_up_stays_and_falls_in_a_line():
    rates = [lr_factor(step, 100, "wsd", 10, 0.4) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert set(rates[10:60]) == {1.0}
    assert rates[60:] == pytest.approx([i / 40 for i in range(40, 0, -1)])
    assert lr_factor(100, 100, "wsd", 10, 0.4, 0.1) == pytest.approx(0.1)


def test_cosine_warms_up_and_falls_to_the_end():
    rates = [lr_factor(step, 110, "cosine", 10, 0.4, 0.2) for step in range(111)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10] == pytest.approx(1.0) and rates[60] == pytest.approx(0.6) and rates[110] == pytest.approx(0.2)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
@pytest.mark.parametrize(("steps", "warmup", "decay"), [(1, 0, 0.5), (1, 5, 0.5), (5, 5, 1.0), (3, 0, 0.0)])
def test_short_runs_have_rates_too(schedule: str, steps: int, warmup: int, decay: float):
    assert all(0 < lr_factor(step, steps, schedule, warmup, decay) <= 1 for step in range(steps))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_or_a_gradient_that_is_not_finite_is_skipped_from_the_first_step(bad: float):
    watch = StepSkipper()
    assert watch.verdict(bad, 1.0) == watch.verdict(1.0, bad) == "not finite"
    assert watch.verdict(1.0, 1.0) == ""
    assert watch.skipped == {"not finite": 2, "spike": 0}
    assert list(watch.losses) == list(watch.norms) == [1.0]  # a mean with it would be no mean


def steady(watch: StepSkipper, count: int) -> list[float]:
    values = (torch.randn(count, generator=torch.Generator().manual_seed(0)) + 10).tolist()
    assert {watch.verdict(value, value) for value in values} == {""}
    return values


@pytest.mark.parametrize("place", [0, 1])
def test_a_step_more_than_6_standard_deviations_above_the_last_128_is_a_spike(place: int):
    for sigmas, why in ((5.9, ""), (6.1, "spike")):
        watch = StepSkipper()
        values = torch.tensor(steady(watch, 200)[-128:])
        pair = [10.0, 10.0]
        pair[place] = (values.mean() + sigmas * values.std()).item()
        assert watch.verdict(*pair) == why
    assert watch.verdict(-1000.0, 0.0) == ""  # falling is no spike


def test_a_spike_is_known_only_after_half_of_the_memory():
    for count, why in ((63, ""), (64, "spike")):
        watch = StepSkipper()
        steady(watch, count)
        assert watch.verdict(1000.0, 10.0) == why


def test_a_lasting_change_is_soon_no_spike_and_no_sigmas_find_none():
    watch = StepSkipper()
    steady(watch, 128)
    verdicts = [watch.verdict(1000.0, 10.0) for _ in range(20)]
    assert verdicts[0] == "spike" and verdicts[-1] == ""
    watch = StepSkipper(0.0)
    steady(watch, 128)
    assert watch.verdict(1e9, 1e9) == ""


def test_what_was_before_can_be_forgotten():
    watch = StepSkipper()
    steady(watch, 128)
    watch.forget()
    assert watch.verdict(1000.0, 10.0) == ""
    steady(watch, 128)
    assert watch.verdict(1e6, 10.0) == "spike"


def test_skipped_steps_in_a_row_are_counted():
    watch, rows = StepSkipper(), []
    for loss in (math.nan, math.nan, 1.0, math.nan):
        watch.verdict(loss, 1.0)
        rows.append(watch.in_a_row)
    assert rows == [1, 2, 0, 1]


def test_the_watch_goes_on_from_its_state_after_json():
    one, two = StepSkipper(), StepSkipper()
    steady(one, 100)
    one.verdict(math.nan, 1.0)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.state_dict() == one.state_dict() and two.in_a_row == 1
    assert [one.verdict(x, 10.0) for x in (10.0, 50.0)] == [two.verdict(x, 10.0) for x in (10.0, 50.0)] == ["", "spike"]
    for watch in (one, two):
        for _ in range(200):
            watch.verdict(1.0, 1.0)
    assert len(two.losses) == 128 and two.state_dict() == one.state_dict()


def test_the_average_is_the_formulas_after_n_updates():
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = EMA([("p", parameter)], 0.9)
    values = [parameter.detach().clone()]
    for i in range(5):
        parameter.data += i + 1
        values.append(parameter.detach().clone())
        average.update()
    want = 0.9**5 * values[0] + sum(0.1 * 0.9 ** (5 - n) * values[n] for n in range(1, 6))
    assert_close(average.values["p"], want)


def test_swapping_twice_changes_no_bit():
    model = tiny()
    average = EMA(model.named_parameters(), 0.9)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape))
    average.update()
    places = [p.data_ptr() for p in model.parameters()]
    before = [p.detach().clone() for p in model.parameters()]
    held = {name: value.clone() for name, value in average.values.items()}
    average.swap()
    assert all(torch.equal(p, held[name]) for name, p in model.named_parameters())
    assert not torch.equal(next(model.parameters()), before[0])
    average.swap()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(average.values[name], value) for name, value in held.items())
    assert [p.data_ptr() for p in model.parameters()] == places  # the optimisers hold these


def test_frozen_parameters_are_not_averaged_where_they_are_not_given():
    model = tiny()
    model.lm_head.requires_grad_(False)
    average = EMA(((n, p) for n, p in model.named_parameters() if p.requires_grad), 0.5)
    assert "lm_head.weight" not in average.values and "model.embed_tokens.weight" in average.values
