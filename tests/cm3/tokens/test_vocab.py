"""Vocab: one flat id space."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3.model.config import CM3Config
from cm3.tokens.vocab import Vocab

VOCAB = Vocab.from_config(CM3Config.preset("tiny"))


def test_the_parts_lie_side_by_side():
    assert (VOCAB.pad, VOCAB.eos, VOCAB.break_, VOCAB.image, VOCAB.end_image) == (0, 1, 2, 3, 4)
    assert [VOCAB.mask(k) for k in range(16)] == list(range(5, 21))
    assert [VOCAB.infill(k) for k in range(16)] == list(range(21, 37))
    assert VOCAB.first_text == 64
    assert VOCAB.first_code == 64 + 320
    assert len(VOCAB) == 64 + 320 + 32


def test_every_id_is_of_exactly_one_kind():
    for id in range(len(VOCAB)):
        assert VOCAB.is_special(id) + VOCAB.is_text(id) + VOCAB.is_code(id) == 1


def test_names_are_distinct():
    assert len({VOCAB.name(id) for id in range(len(VOCAB))}) == len(VOCAB)
    assert [VOCAB.name(id) for id in (0, 2, 5, 36, 64, 384)] == [
        "<pad>",
        "<break>",
        "<mask:0>",
        "<infill:15>",
        "text 0",
        "code 0",
    ]


@given(st.lists(st.integers(0, VOCAB.num_codes - 1)))
def test_codes_come_back_from_ids_in_every_container(codes: list[int]):
    assert VOCAB.id_to_code(VOCAB.code_to_id(codes)) == codes
    tensor = torch.tensor(codes, dtype=torch.long)
    assert torch.equal(VOCAB.id_to_code(VOCAB.code_to_id(tensor)), tensor)
    assert [VOCAB.id_to_code(VOCAB.code_to_id(code)) for code in codes] == codes
    assert all(VOCAB.is_code(id) for id in VOCAB.code_to_id(codes))


@given(st.lists(st.integers(0, VOCAB.num_text - 1)))
def test_text_ids_come_back(text: list[int]):
    assert VOCAB.ids_to_text(VOCAB.text_to_ids(text)) == text
    assert all(VOCAB.is_text(id) for id in VOCAB.text_to_ids(text))


@pytest.mark.parametrize("codes", [32, -1, [0, 32], torch.tensor([[0, 1], [99, 2]])])
def test_a_code_out_of_range_is_refused(codes):
    with pytest.raises(ValueError, match=r"image code .* is out of range: 0 to 31"):
        VOCAB.code_to_id(codes)


def test_ids_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="out of range"):
        VOCAB.id_to_code(VOCAB.first_text)
    with pytest.raises(ValueError, match="out of range"):
        VOCAB.ids_to_text([VOCAB.first_text, VOCAB.eos])
    with pytest.raises(ValueError, match="mask number 16"):
        VOCAB.mask(16)
