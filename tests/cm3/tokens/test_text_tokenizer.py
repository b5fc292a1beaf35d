"""TextTokenizer: every string goes there and back, and no string is a control token."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from cm3.tokens.text_tokenizer import LETTERS, TextTokenizer, well_formed

TEXTS = ["a red apple", "the red car", "تفاحة حمراء", "a red apple on the red car"] * 3
TOKENIZER = TextTokenizer.train(TEXTS, vocab_size=300)

strings = st.text(st.characters(exclude_categories=["Cs"]))
any_strings = st.text(st.characters())  # lone surrogates too


@given(strings)
def test_decoding_undoes_encoding(text: str):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(any_strings)
def test_lone_surrogates_become_the_replacement_character(text: str):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == well_formed(text)
    well_formed(text).encode("utf-8")


def test_a_surrogate_pair_is_its_character():
    assert well_formed("\ud83d\ude00") == "😀"
    assert well_formed("a\ud83db\udc00") == "a\ufffdb\ufffd"
    assert well_formed("\ufeffa") == "\ufeffa"


@pytest.mark.parametrize("text", ["<break>", "<image>", "</image>", "<eos>", "<pad>", "<mask:0>", "<infill:0>"])
def test_text_that_spells_a_special_token_is_bytes(text: str):
    ids = TOKENIZER.encode(text)
    assert len(ids) > 1
    assert TOKENIZER.decode(ids) == text


def test_frequent_words_are_short():
    assert len(TOKENIZER.encode("a red apple")) < len("a red apple")
    assert len(TOKENIZER) <= 300


@given(any_strings, st.lists(st.sampled_from(sorted(TOKENIZER.tokenizer.get_vocab()))))
def test_no_token_stands_for_more_bytes_than_the_longest(text: str, tokens: list[str]):
    dense = TOKENIZER.tokenizer.decoder.decode(tokens)  # pyright: ignore[reportOptionalMemberAccess]
    for one in (text, dense, text + dense):
        assert len(well_formed(one).encode()) <= TOKENIZER.max_bytes * len(TOKENIZER.encode(one))
        assert len(one) <= len(well_formed(one).encode())


def changed(change: Callable[[Tokenizer], object]) -> TextTokenizer:
    tokenizer = Tokenizer.from_str(TOKENIZER.tokenizer.to_str())
    change(tokenizer)
    return TextTokenizer(tokenizer)


def test_tokenizers_that_may_drop_text_have_no_longest_token():
    assert changed(lambda tokenizer: None).max_bytes == max(map(len, TOKENIZER.tokenizer.get_vocab()))
    for change in (
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Strip()),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda tokenizer: setattr(tokenizer, "model", models.BPE({"a": 0}, [])),
        lambda tokenizer: setattr(tokenizer, "model", models.WordLevel({"a": 0}, "a")),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("apple", lstrip=True)]),
        lambda tokenizer: tokenizer.enable_truncation(9),
    ):
        assert changed(change).max_bytes == math.inf


def test_saving_and_loading_keeps_the_ids(tmp_path):
    TOKENIZER.save(tmp_path / "new")
    loaded = TextTokenizer.load(tmp_path / "new")
    assert all(loaded.encode(text) == TOKENIZER.encode(text) for text in TEXTS)


def test_training_twice_gives_the_same_file(tmp_path):
    for name in ("a", "b"):
        TextTokenizer.train(iter(TEXTS), vocab_size=290).save(tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_a_missing_or_broken_file_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer.json"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="not a tokenizer"):
        TextTokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="256"):
        TextTokenizer.train(TEXTS, vocab_size=255)


WORDS = ["नमस्ते दुनिया", "สวัสดีชาวโลก", "a cat and a dog", "قطة وكلب", 'a sign that says "CAT"\n'] * 3
BY_LETTERS = TextTokenizer.train(WORDS, 400, pattern=LETTERS)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_split_by_letters_every_text_is_still_decoded_to_itself(text: str):
    assert BY_LETTERS.decode(BY_LETTERS.encode(text)) == text
    assert len(text.encode()) <= BY_LETTERS.max_bytes * len(BY_LETTERS.encode(text))


def test_split_by_letters_words_of_scripts_with_marks_stay_whole():
    letters, plain = (TextTokenizer.train(WORDS, 1000, pattern=pattern) for pattern in (LETTERS, None))
    for word in ("नमस्ते", "สวัสดีชาวโลก"):
        assert len(letters.encode(word)) == 1 < len(plain.encode(word))
    assert letters.encode("a cat\na dog")[:3] == letters.encode("a cat\n")  # a line ends where it ends
