"""The lexicon's build: which names are left out."""

from train.recipes.emoji.build_lexicon import lexicon, words_of

ENGLISH = {"1": "a cat", "2": "a dog", "3": "a red apple"}


def test_names_of_every_language_lead_to_english_ones():
    names, used = lexicon({"fi": {"1": "Kissa", "2": "koira"}, "cs": {"1": "kočka", "2": "pes"}}, ENGLISH, set())
    assert names == {"kissa": "a cat", "koira": "a dog", "kočka": "a cat", "pes": "a dog"} and used == ["cs", "fi"]


def test_names_with_several_meanings_are_left_out():
    names, _ = lexicon({"xx": {"1": "mar", "2": "dok"}, "yy": {"1": "kat", "2": "mar"}}, ENGLISH, set())
    assert names == {"dok": "a dog", "kat": "a cat"}


def test_names_with_words_that_the_model_reads_are_left_out():
    names, _ = lexicon({"xx": {"1": "le chat", "2": "dok"}}, ENGLISH, words_of(["Le chien"]))
    assert names == {"dok": "a dog"}


def test_languages_with_few_names_are_left_out():
    names, used = lexicon({"xx": {"1": "kat"}}, ENGLISH, set())
    assert names == {} and used == []
