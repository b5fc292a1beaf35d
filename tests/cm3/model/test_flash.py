"""What a flash attention kernel is given for packed rows. The kernel itself needs a GPU: one that does the same,
document by document, stands in for it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from train.language.loss import LMLearner, end_to_end
from train.language.packing import Batch


def varlen(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any):
    """q, k, v [1, heads, tokens, K] -> [1, tokens, heads, K]: each document by itself, as it is told."""
    assert mask is None and q.shape[0] == 1
    places = kwargs["cu_seq_lens_q"].tolist()
    assert places == kwargs["cu_seq_lens_k"].tolist() and places[0] == 0 and places[-1] == q.shape[2]
    assert max(b - a for a, b in zip(places, places[1:], strict=False)) <= kwargs["max_length_q"]
    k, v = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (k, v))
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], is_causal=True, scale=scaling
        )
        for a, b in zip(places, places[1:], strict=False)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(64, 400, (3, 24), generator=generator)
    lengths = [[5, 12, 7], [24], [1, 1, 20, 2]]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    return Batch(ids, torch.rand(3, 24, generator=generator), torch.ones(3, 24, dtype=torch.long), positions)


def test_rows_become_one_with_a_place_for_each_document(batch: Batch):
    given = end_to_end(batch)
    assert given["cu_seq_lens_q"].tolist() == [0, 5, 17, 24, 48, 49, 50, 70, 72]
    assert given["cu_seq_lens_q"].dtype == torch.int32
    assert given["input_ids"].shape == given["position_ids"].shape == (1, 72)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_flash_attention_gives_the_loss_and_the_gradients_of_eager_attention(
    batch: Batch, position: str, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    model = CM3ForCausalLM(CM3Config.preset("tiny", position=position))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    learner, found = LMLearner(model), []
    for implementation in ("eager", "flash_attention_2"):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", varlen)
        model.config._attn_implementation = implementation  # the setter asks for the package
        model.zero_grad()
        total = learner(batch).total
        total.backward()
        found.append(
            (total.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        )
    (one, slopes), (two, others) = found
    assert_close(two, one, rtol=1e-5, atol=1e-5)
    for name, slope in slopes.items():
        assert_close(others[name], slope, rtol=1e-4, atol=1e-5)
