"""The texts of token shards."""

from collections.abc import Iterator
from itertools import groupby

from train.documents.shards import Shards

MOST_READ = 100_000  # documents: they hold nearly all words of more


def texts_of(shards: Shards, most: int = MOST_READ) -> Iterator[str]:
    """Each text of the documents once, an answer with its question; of more documents than `most` every so manieth is
    read."""
    vocab, tokenizer = shards.vocab(), shards.text_tokenizer()
    seen = set[tuple[int, ...]]()
    for number in range(0, len(shards), -(-len(shards) // most)):
        if not shards.lengths[number]:  # it lies in a bad shard
            continue
        for is_text, ids in groupby(shards.document(number).ids, vocab.is_text):
            if is_text and (span := tuple(ids)) not in seen:
                seen.add(span)
                yield tokenizer.decode([id - vocab.first_text for id in span])
