"""The texts of token shards."""

from collections.abc import Iterator
from itertools import groupby

from train.documents.shards import Shards

MAX_DOCUMENTS = 100_000  # of larger data sets a part is read, which has nearly all words


def texts_of(shards: Shards, most: int = MAX_DOCUMENTS) -> Iterator[str]:
    """Yield each distinct text of the documents, an answer together with its question.

    Args:
        shards: with the documents.
        most: about how many documents are read, evenly spread over all.
    """
    vocab, tokenizer = shards.vocab(), shards.text_tokenizer()
    seen = set[tuple[int, ...]]()
    for number in range(0, len(shards), -(-len(shards) // most)):
        if not shards.lengths[number]:  # in a damaged shard
            continue
        for is_text, ids in groupby(shards.document(number).ids, vocab.is_text):
            if is_text and (span := tuple(ids)) not in seen:
                seen.add(span)
                yield tokenizer.decode([id - vocab.first_text for id in span])
