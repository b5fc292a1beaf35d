"""The form of the token stream is spelled in one place: a new special token is one edit."""

import ast

import pytest
import torch

from checkout import ROOT
from cm3 import CM3
from cm3.engine.options import EditOptions, SamplingConfig
from cm3.tokens import encoding as spelling
from cm3.tokens.document import Answer, Document, Image, Text
from cm3.tokens.encoding import encode, image_spans, parts
from cm3.tokens.vocab import Vocab
from tests.project.graph import modules
from train.documents.shards import ShardWriter, Target, questions
from train.documents.worker import cut
from train.language.objective import Form, Objective, training_sequence

SPELLS = {"eos", "bos", "end_turn", "break_", "image", "end_image", "mask", "infill", "first_mask", "first_infill"}
MAY = {"cm3/tokens/vocab.py", "cm3/tokens/encoding.py", "cm3/tokens/masking.py"}
MAY |= {"cm3/tokens/grammar.py", "cm3/tokens/document_state.py"}
ANCHOR = 40  # an id that is reserved today


def test_special_tokens_are_handled_in_one_place():
    vocabs = {"vocab", "v", "Vocab"}
    for module, path in modules(ROOT).items():
        if path.relative_to(ROOT).as_posix() in MAY or module.startswith("tokenizer_image"):
            continue
        used = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
            and node.attr in SPELLS
            and (
                (isinstance(node.value, ast.Name) and node.value.id in vocabs)
                or (isinstance(node.value, ast.Attribute) and node.value.attr in vocabs)
            )
        }
        assert not used, f"{module} handles {used}: cm3/tokens/encoding.py does that"


@pytest.fixture
def anchored(monkeypatch: pytest.MonkeyPatch) -> None:
    """One edit: a token at the head of each image."""
    monkeypatch.setattr(spelling, "opening_ids", lambda vocab, grid=None: [vocab.image, ANCHOR])


@pytest.mark.usefixtures("anchored")
def test_a_new_special_token_is_one_edit(tiny: CM3):
    vocab, text, image = tiny.vocab, tiny.text_tokenizer, Image(torch.arange(16).view(4, 4))
    writer = ShardWriter(text, vocab)
    writer.add(Document((Text("a cat"), image)))
    writer.add(questions([Target("caption", "Caption: ", "a cat")], image))
    sampling = SamplingConfig()
    made = {
        "drawn documents": writer.ids[writer.offsets[0] : writer.offsets[1]].tolist(),
        "asked documents": writer.ids[writer.offsets[1] :].tolist(),
        "captions": tiny.prompts.text("Caption: ", image, sampling, 0).prompt,
        "edits": tiny.prompts.edit("red", image, EditOptions()).prompt,
    }
    for name, ids in made.items():
        assert 0 < ids.count(ANCHOR) == ids.count(vocab.image) and ids[ids.index(ANCHOR) - 1] == vocab.image, name


@pytest.mark.usefixtures("anchored")
def test_what_reads_documents_keeps_a_token_that_it_does_not_know(tiny: CM3):
    vocab, text, image = tiny.vocab, tiny.text_tokenizer, Image(torch.arange(16).view(4, 4))
    ids, spans = encode(Document((Text("Caption: "), Answer("a cat"), image)), vocab, text)
    assert [part.is_image for part in parts(ids, vocab)] == [False, True]
    assert cut(ids, len(ids), vocab) == [ids]
    told = training_sequence(ids, spans, Form.IMAGE_FIRST, 0, vocab, Objective(), (4, 4), 0).ids.tolist()
    assert sorted(told) == sorted(ids)
    hidden = training_sequence(
        encode(Document((image,)), vocab, text).ids, [], Form.INPAINTING, 0, vocab, Objective(), (4, 4), 0
    )
    assert hidden.ids.tolist().count(ANCHOR) == 2
    (start, end), *_ = image_spans(ids, vocab)
    assert ids[start:end].count(ANCHOR) == 1


def test_parts_and_join_are_inverse(tiny: CM3):
    vocab, text, image = tiny.vocab, tiny.text_tokenizer, Image(torch.arange(16).view(4, 4))
    for items in ((Text("a"),), (image,), (image, image), (Text("a"), image, image, Text("b"), image), ()):
        ids = encode(Document(items), vocab, text).ids
        pieces = [ids[part.start : part.end] for part in parts(ids, vocab)]
        assert spelling.join(pieces, vocab).ids == ids
        assert [(part.start, part.end) for part in parts(ids, vocab)] == spelling.join(pieces, vocab).spans


def test_answers_are_marked_where_they_stand_and_read_back(tiny: CM3):
    vocab, text, image = tiny.vocab, tiny.text_tokenizer, Image(torch.arange(16).view(4, 4))
    whole = Document((Text("Caption: "), Answer("a cat"), Text(" And: "), Answer("two"), image))
    ids, spans = encode(whole, vocab, text)
    assert [text.decode(vocab.ids_to_text(ids[start:end])) for start, end in spans] == ["a cat", "two"]
    assert spelling.from_ids(ids, vocab, text, (4, 4), spans) == whole
    assert Document.from_json(whole.to_json()) == whole


def test_documents_before_the_last_are_counted(tiny: CM3):
    one, other = (spelling.to_ids(Document((Text(words),)), tiny.vocab, tiny.text_tokenizer) for words in ("a", "a b"))
    assert spelling.before_last([*one, *other[1:]], tiny.vocab) == len(one)
    assert spelling.before_last([*one, *one[1:], *other[1:]], tiny.vocab) == 2 * len(one) - 1
    assert spelling.before_last(one, tiny.vocab) == 0


def test_every_special_token_has_its_name():
    names = {Vocab(64, 10, 10).name(id) for id in range(5)}
    assert names == {"<pad>", "<eos>", "<break>", "<image>", "</image>"}
