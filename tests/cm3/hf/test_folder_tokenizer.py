"""The tokenizer of a model folder, as AutoTokenizer reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from cm3 import CM3
from cm3.hf.model_folder import EMBEDDED
from cm3.tokens.document import Document, Image, Text
from cm3.tokens.encoding import encode

ANYTHING = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(["<eos>", "<break>", "<image>", "<code:5>", "<mask:0>", "<pad>", "<bos>", " ", "a", "تفاحة"]),
        max_size=6,
    ).map("".join),
)


@pytest.fixture(scope="module")
def auto() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED / "emoji")


@pytest.fixture(scope="module")
def ids_of(emoji: CM3, auto: Any) -> dict[str, Callable[[str], list[int]]]:
    """The ids of a text: by AutoTokenizer, by the file alone, and by the pipeline."""
    raw = Tokenizer.from_file(str(EMBEDDED / "emoji" / "tokenizer.json"))

    def sound(words: str) -> str:
        return words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    return {
        "auto": lambda words: auto(sound(words))["input_ids"],
        "tokenizers": lambda words: raw.encode(sound(words)).ids,
        "pipeline": lambda words: emoji.vocab.text_to_ids(emoji.text_tokenizer.encode(words)),
    }


@given(words=ANYTHING)
def test_auto_tokenizer_gives_the_ids_of_the_pipeline_whatever_the_text_spells(
    ids_of: dict[str, Callable[[str], list[int]]], words: str
):
    for one in ("auto", "tokenizers"):
        got = ids_of[one](words)
        assert got == ids_of["pipeline"](words)
        assert all(4096 + 64 > id >= 64 for id in got)


def test_the_ids_of_an_apple(auto: Any):
    assert auto("a red apple")["input_ids"] == [128, 1125, 1337]


def test_every_id_has_its_name_and_special_tokens_their_roles(auto: Any, emoji: CM3):
    vocab = emoji.vocab
    ids = [vocab.pad, vocab.eos, vocab.break_, vocab.image, vocab.mask(3), vocab.infill(0), vocab.placeholder]
    assert auto.convert_ids_to_tokens(ids) == [vocab.name(id) for id in ids]
    assert auto.convert_tokens_to_ids("<code:7>") == vocab.code_to_id(7)
    assert (auto.pad_token_id, auto.eos_token_id, auto.bos_token_id) == (vocab.pad, vocab.eos, vocab.bos)
    assert len(auto) == len(vocab) and auto.model_max_length == emoji.context
    document = Document((Text("a red apple"), Image(torch.zeros(8, 8, dtype=torch.long))))
    spelled = auto.decode(encode(document, vocab, emoji.text_tokenizer).ids)
    assert spelled.startswith("<eos>a red apple<break><image><code:0><code:0>")


def test_a_batch_is_padded_on_the_left(auto: Any):
    batch = auto(["a", "a red apple"], padding=True)
    assert batch["input_ids"] == [[0, 0, 128], [128, 1125, 1337]] and batch["attention_mask"][0] == [0, 0, 1]


def test_a_saved_tokenizer_is_the_same(auto: Any, tmp_path: Path):
    auto.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for words in ("a red apple", "<break><eos>", "تفاحة"):
        assert again(words)["input_ids"] == auto(words)["input_ids"]
