"""The loss: in chunks as whole, packed as unpacked, and no document sees another."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.vocab import Vocab
from largest import Largest
from train.language.loss import ChunkedCrossEntropy, LMLearner, cross_entropy, sampled_codes
from train.language.objective import KINDS
from train.language.packing import Batch

N, D, V = 37, 16, 50
ROW = 48
LENGTHS = [11, 23, 9, 30, 17, 21]
MODELS = {
    "rope, QK-norm, GQA": {},
    "rope, no QK-norm, all heads": {"qk_norm": False, "num_key_value_heads": 4},
    "learned, no QK-norm": {"position": "learned", "qk_norm": False, "norm": "layernorm", "activation": "relu"},
    "learned, QK-layernorm, tied": {"position": "learned", "qk_norm_type": "layernorm", "tie_word_embeddings": True},
}
KINDS_OF_ATTENTION = ["eager", "sdpa"]


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden [N, D], head [V, D], targets [N], weights [N]."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    weights = torch.rand(N, generator=generator) * (torch.rand(N, generator=generator) < 0.8)
    return (
        draw(N, D).requires_grad_(),
        draw(V, D).requires_grad_(),
        torch.randint(V, (N,), generator=generator),
        weights,
    )


def written_out(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, z: float) -> tuple[Tensor, Tensor]:
    logits = hidden @ head.T
    errors = F.cross_entropy(logits, targets, reduction="none")
    return (weights * (errors + z * logits.logsumexp(-1).square())).sum(), errors


@pytest.mark.parametrize("chunk", [1, 7, 36, 37, 38, 1000])
@pytest.mark.parametrize("z", [0.0, 1e-2])
def test_the_loss_in_chunks_is_cross_entropy_with_z_loss(inputs, chunk: int, z: float):
    hidden, head, targets, weights = inputs
    total, errors = ChunkedCrossEntropy.apply(hidden, head, targets, weights, z, chunk)
    want, each = written_out(hidden, head, targets, weights, z)
    assert_close(total, want, rtol=1e-5, atol=1e-5)
    assert_close(errors, each, rtol=1e-5, atol=1e-5)
    assert not errors.requires_grad
    slopes = torch.autograd.grad(3 * total, (hidden, head))  # with a slope of its own from outside
    for slope, expected in zip(slopes, torch.autograd.grad(3 * want, (hidden, head)), strict=True):
        assert_close(slope, expected, rtol=1e-5, atol=1e-5)


def test_the_z_loss_counts(inputs):
    totals = [ChunkedCrossEntropy.apply(*inputs, z, 8)[0].item() for z in (0.0, 1e-2)]
    assert totals[1] > totals[0] + 0.01


@pytest.mark.parametrize("shares", [(0, V), (20, V), (0, 20)], ids=["both", "codes alone", "text alone"])
def test_by_modality_each_target_competes_with_its_own_alone(inputs, shares: tuple[int, int]):
    hidden, head, _, weights = inputs
    first_code = 20
    targets = torch.randint(*shares, (N,), generator=torch.Generator().manual_seed(1))
    total, errors = cross_entropy(hidden, head, targets, weights, 1e-2, 8, first_code)
    codes = (targets >= first_code)[:, None] == (torch.arange(V) >= first_code)[None]  # [N, V]
    logits = (hidden @ head.T).masked_fill(~codes, -torch.inf)
    each = F.cross_entropy(logits, targets, reduction="none")
    want = (weights * (each + 1e-2 * logits.logsumexp(-1).square())).sum()
    assert_close(total, want, rtol=1e-5, atol=1e-5)
    assert_close(errors, each, rtol=1e-5, atol=1e-5)
    for slope, expected in zip(
        torch.autograd.grad(total, (hidden, head)), torch.autograd.grad(want, (hidden, head)), strict=True
    ):
        assert_close(slope, expected, rtol=1e-5, atol=1e-5)


def test_every_code_of_a_batch_competes_and_a_sample_of_the_others_stands_for_them():
    targets = torch.tensor([7, 3, 7, 49])
    found = sampled_codes(targets, V, 10)
    assert found.ids[:3].tolist() == [3, 7, 49] and found.ids[found.targets].equal(targets)
    assert len({*found.ids.tolist()}) == 13 and found.ids.max() < V
    assert found.bias[:3].eq(0).all() and found.bias[3:].exp().sum().item() == pytest.approx(47)
    assert all(map(torch.equal, sampled_codes(targets, V, 10), found)), "a run that goes on must draw the same sample"


def test_with_as_many_negatives_as_there_are_codes_nothing_is_sampled(inputs):
    hidden, head, targets, weights = inputs
    want, each = cross_entropy(hidden, head, targets, weights, 1e-2, 7, 20)
    wanted = torch.autograd.grad(want, (hidden, head))
    total, errors = cross_entropy(hidden, head, targets, weights, 1e-2, 7, 20, V)
    assert_close(total, want)
    assert_close(errors, each)
    assert_close(torch.autograd.grad(total, (hidden, head)), wanted)


def test_the_sum_over_a_sample_estimates_the_sum_over_all_codes_without_bias(inputs):
    hidden, head, *_ = inputs
    logits, generator = (hidden @ head.T).detach()[0] / 4, torch.Generator().manual_seed(0)  # [V]
    estimates = []
    for _ in range(4000):
        found = sampled_codes(torch.randint(V, (6,), generator=generator), V, 20)
        estimates.append((logits[found.ids] + found.bias).exp().sum())
    assert torch.stack(estimates).mean().item() == pytest.approx(logits.exp().sum().item(), rel=0.02)


def test_the_bridge_adds_nothing_at_first_and_then_what_the_embeddings_say():
    torch.manual_seed(0)
    model, (batch, *_) = CM3ForCausalLM(CM3Config.preset("tiny")), documents()
    plain, bridged = LMLearner(model), LMLearner(model, bridged=True)
    assert plain.bridge is None and bridged.bridge is not None
    assert_close(bridged(batch).total, plain(batch).total)
    bridged(batch).total.backward()
    assert bridged.bridge.grad is not None and bridged.bridge.grad.abs().max() > 0
    bridged.bridge.data.normal_()
    want = bridged(batch).total
    assert want.item() != pytest.approx(plain(batch).total.item(), rel=1e-3)
    model.lm_head.weight.data += model.model.embed_tokens.weight.data @ bridged.bridge.data
    assert_close(plain(batch).total, want)


def test_without_gradients_all_codes_compete():
    model = CM3ForCausalLM(CM3Config.preset("tiny"))
    first, (batch, *_) = Vocab.from_config(model.config).first_code, documents()
    every, few = LMLearner(model, first_code=first), LMLearner(model, first_code=first, negatives=2)
    assert few(batch).total.item() != every(batch).total.item()
    with torch.no_grad():
        assert_close(few(batch).total, every(batch).total)


def test_a_frozen_head_or_a_frozen_body_has_no_gradient_and_the_other_is_the_same(inputs):
    hidden, head, targets, weights = inputs
    whole = torch.autograd.grad(ChunkedCrossEntropy.apply(*inputs, 0.01, 8)[0], (hidden, head))
    for which in (0, 1):
        pair = [hidden.detach(), head.detach()]
        pair[which].requires_grad_()
        ChunkedCrossEntropy.apply(*pair, targets, weights, 0.01, 8)[0].backward()
        assert pair[1 - which].grad is None
        assert_close(pair[which].grad, whole[which])


def test_under_bf16_autocast_loss_and_gradients_stay_close_and_keep_their_dtypes(inputs):
    hidden, head, targets, weights = inputs
    want = written_out(hidden, head, targets, weights, 1e-3)[0]
    with torch.autocast("cpu", torch.bfloat16):
        total, errors = ChunkedCrossEntropy.apply(*inputs, 1e-3, 8)
    assert total.dtype == errors.dtype == torch.float32
    assert_close(total, want, rtol=1e-2, atol=0)
    slopes = torch.autograd.grad(total, (hidden, head))
    for slope, expected in zip(slopes, torch.autograd.grad(want, (hidden, head)), strict=True):
        assert slope.dtype == torch.float32
        assert (slope - expected).norm() < 2e-2 * expected.norm()


def test_the_logits_of_the_whole_batch_never_exist(inputs):
    generator = torch.Generator().manual_seed(0)
    n, v, chunk = 512, 1000, 16
    hidden = torch.randn(n, D, generator=generator, requires_grad=True)
    head = torch.randn(v, D, generator=generator, requires_grad=True)
    targets, weights = torch.randint(v, (n,), generator=generator), torch.ones(n)
    with Largest() as largest:
        ChunkedCrossEntropy.apply(hidden, head, targets, weights, 1e-3, chunk)[0].backward()
    assert largest.elements == chunk * v
    with Largest() as largest:
        written_out(hidden, head, targets, weights, 1e-3)[0].backward()
    assert largest.elements == n * v


def model_of(attention: str, **fields: Any) -> CM3ForCausalLM:
    """A tiny model whose blocks do something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CM3ForCausalLM(CM3Config.preset("tiny", max_position_embeddings=ROW, **fields))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.set_attn_implementation(attention)
    return model.train()


def documents(seed: int = 0) -> list[Batch]:
    """Single rows of one document each, [1, T]."""
    generator, out = torch.Generator().manual_seed(seed), []
    for length in LENGTHS:
        ids = torch.randint(1, 416, (1, length), generator=generator)
        weights, kinds = torch.rand(1, length, generator=generator), torch.randint(1, 5, (1, length))
        weights[:, 0], kinds[:, 0] = 0, 0
        out.append(Batch(ids, weights, kinds, torch.arange(length)[None]))
    return out


def packed(parts: list[Batch]) -> Batch:
    """Documents side by side in rows of ROW tokens, [R, T]; the rest is padding, with positions from 0 too."""
    rows: list[list[Batch]] = [[]]
    for part in parts:
        if sum(one.ids.shape[1] for one in rows[-1]) + part.ids.shape[1] > ROW:
            rows.append([])
        rows[-1].append(part)
    out = []
    for row in rows:
        left = ROW - sum(one.ids.shape[1] for one in row)
        nothing = torch.zeros(1, left, dtype=torch.int64)
        padding = Batch(nothing, nothing.float(), nothing, torch.arange(left)[None])
        out.append([torch.cat(arrays, 1) for arrays in zip(*row, padding, strict=True)])
    return Batch(*(torch.cat(arrays) for arrays in zip(*out, strict=True)))


def gradients(learner: LMLearner) -> dict[str, Tensor]:
    out = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()
    return out


@pytest.mark.parametrize("attention", KINDS_OF_ATTENTION)
@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_packed_rows_give_the_loss_and_the_gradients_of_the_documents_alone(attention: str, fields: dict[str, Any]):
    learner = LMLearner(model_of(attention, **fields), z=1e-3, chunk=16)
    parts = documents()
    alone = [learner(part) for part in parts]
    total = torch.stack([losses.total for losses in alone]).sum()
    total.backward()
    want = gradients(learner)
    together = learner(packed(parts))
    together.total.backward()
    assert packed(parts).ids.shape == (3, ROW)
    assert_close(together.total, total, rtol=1e-5, atol=1e-5)
    for kind in range(1, len(KINDS) + 1):
        errors = torch.stack([losses.sums[kind] for losses in alone]).sum()
        assert_close(together.sums[kind], errors, rtol=1e-5, atol=1e-4)
        assert together.counts[kind] == sum(losses.counts[kind] for losses in alone)
    found = gradients(learner)
    assert found.keys() == want.keys() == {name for name, _ in learner.named_parameters()}
    for name, slope in found.items():
        # A bias of the keys moves all scores of a query alike: its gradient is 0 but for rounding.
        assert (slope - want[name]).norm() < max(1e-5 * want[name].norm(), 1e-6), name


@pytest.mark.parametrize("attention", KINDS_OF_ATTENTION)
@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_a_document_does_not_see_its_neighbours(attention: str, fields: dict[str, Any]):
    model = model_of(attention, **fields).eval()
    batch = packed(documents())

    @torch.no_grad()
    def hidden(ids: Tensor) -> Tensor:
        return model.model(input_ids=ids, position_ids=batch.positions, use_cache=False).last_hidden_state

    before, row, changed = hidden(batch.ids), 0, slice(LENGTHS[0], sum(LENGTHS[:2]))
    ids = batch.ids.clone()
    ids[row, changed] = ids[row, changed].flip(0) % 400 + 1
    after = hidden(ids)
    others = torch.ones(batch.ids.shape, dtype=torch.bool)
    others[row, changed] = False
    assert_close(after[others], before[others], rtol=0, atol=1e-6)
    assert (after[row, changed] - before[row, changed]).abs().amax(-1).min() > 1e-2


def test_without_positions_that_start_again_documents_do_see_their_neighbours():
    model, batch = model_of("eager").eval(), packed(documents())
    run: Callable[..., Any] = partial(model.model, use_cache=False)
    with torch.no_grad():
        apart = run(input_ids=batch.ids, position_ids=batch.positions).last_hidden_state
        mixed = run(input_ids=batch.ids).last_hidden_state
    assert_close(mixed[:, : LENGTHS[0]][0], apart[:, : LENGTHS[0]][0], rtol=0, atol=1e-5)
    assert (mixed - apart)[0, LENGTHS[0] :].abs().max() > 1e-2


@pytest.mark.slow  # a minute: it is compiled
def test_flex_attention_gives_the_loss_that_eager_does():
    parts = packed(documents())
    with torch.no_grad():
        want = LMLearner(model_of("eager"))(parts)
        found = LMLearner(model_of("flex_attention"))(parts)
    assert_close(found.total, want.total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [5, 1024])
def test_sums_and_counts_are_those_of_the_kinds(chunk: int):
    learner, batch = LMLearner(model_of("eager"), chunk=chunk), packed(documents())
    losses = learner(batch)
    logits = learner.model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).logits[:, :-1]
    errors = -logits.log_softmax(-1).gather(2, batch.ids[:, 1:, None])[..., 0]
    assert_close(losses.total, (errors * batch.weights[:, 1:]).sum(), rtol=1e-5, atol=1e-4)
    assert losses.counts[0] == losses.sums[0] == 0  # what does not count is not computed
    for kind in range(1, len(KINDS) + 1):
        here = batch.kinds[:, 1:] == kind
        assert losses.counts[kind] == here.sum()
        assert_close(losses.sums[kind], errors[here].sum(), rtol=1e-5, atol=1e-3)
    assert losses.counts[1:].sum() == sum(LENGTHS) - len(LENGTHS)


def test_recomputed_activations_give_the_same_gradients():
    learner, batch = LMLearner(model_of("eager")), packed(documents())
    learner(batch).total.backward()
    want = gradients(learner)
    learner.model.activation_checkpointing_enable({"use_reentrant": False})
    learner.train()(batch).total.backward()
    for name, slope in gradients(learner).items():
        assert_close(slope, want[name])
