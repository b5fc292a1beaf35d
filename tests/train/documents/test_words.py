"""The texts of token shards: each once, of bad shards none."""

from pathlib import Path

from documents import write_shards
from train.documents.shards import Shards
from train.documents.words import texts_of


def test_the_texts_of_shards_are_those_of_their_documents(vq_folder: Path, tmp_path: Path):
    shards = Shards(write_shards(tmp_path, vq_folder, [60] * 8))
    vocab, text = shards.vocab(), shards.text_tokenizer()
    said = [
        text.decode([id - vocab.first_text for id in shards.document(i).ids if vocab.is_text(id)]) for i in range(8)
    ]
    assert list(texts_of(shards)) == said
    assert list(texts_of(shards, most=4)) == said[::2]
    assert list(texts_of(shards, most=3)) == said[::3]


def test_a_text_that_stands_twice_comes_once(token_shards: Path):
    texts = list(texts_of(Shards(token_shards)))
    assert len(texts) == len(set(texts)) > 100
    assert any("Caption: " in text for text in texts)


def test_the_documents_of_a_bad_shard_are_passed_over(vq_folder: Path, tmp_path: Path):
    write_shards(tmp_path, vq_folder, [60] * 8, per_shard=4)
    whole = list(texts_of(Shards(tmp_path)))
    (tmp_path / "train-00000.safetensors").write_bytes(b"damaged")
    assert list(texts_of(Shards(tmp_path, max_bad=0.6))) == whole[4:]
