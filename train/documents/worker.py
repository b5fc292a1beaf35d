"""Write one shard of your own data: images to codes, texts to ids, samples to documents.

An image with a caption gives two documents, for generation and for captioning. An interleaved sample gives one
document, or several if it is too long.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from cm3.files import write_whole
from cm3.tasks.images import nearest_grid
from cm3.tokens.document import Document, Image, Text
from cm3.tokens.encoding import encode, join, parts
from cm3.tokens.templates import WORDS
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from tokenizer_image.pixels import open_image
from train.documents.sample import Sample, Skip
from train.documents.shard_files import SPLITS
from train.documents.shards import ShardWriter, Target, questions
from train.documents.sources import Source
from train.images.codes import encode_sizes, load_ahead

SKIPPED = "skipped"


@dataclass(frozen=True)
class PrepareOptions:
    """The options of train.prepare.

    Attributes:
        image_tokenizer: folder or name; "" = "emoji", or the one of `model`.
        model: folder or name of a CM3 model to fine-tune: its tokenizers and vocabulary are used; "" = train a text
            tokenizer.
        text_vocab: largest number of ids of the text tokenizer.
        text_sample: largest number of texts on which it is trained.
        language: "en" or "ar": language of the caption prompt for samples that do not name one.
        held_out: share of the samples in the held-out split. The same content is always in the same split.
        max_tokens: largest number of tokens in a document; longer interleaved samples are split. 0 = 4096, or the
            model's context if that is smaller.
        samples: samples in a shard; a shard of a tar has 64 MB instead.
        batch: samples that are encoded together.
        workers: threads of each process that read and decode images.
        grids: further grids for images that are not square, such as "6x10 10x6", rows x columns. Each image has the
            nearest grid. Not with `model`, which has its own.
        source: recorded for samples that do not name one.
        licence: recorded for samples that do not name one.
        owner: recorded for samples that do not name one.
        format: as for train.documents.sources.open_source.
        image_column: column of a table with the images; "" = one of the usual names.
        text_column: column of a table with the captions; "" = one of the usual names.
    """

    image_tokenizer: str = ""
    model: str = ""
    text_vocab: int = 4096
    text_sample: int = 1_000_000
    language: str = "en"
    held_out: float = 0.01
    max_tokens: int = 0
    samples: int = 2048
    batch: int = 16
    workers: int = 2
    grids: str = ""
    source: str = ""
    licence: str = ""
    owner: str = ""
    format: str = "auto"
    image_column: str = ""
    text_column: str = ""


class DecodedSample(NamedTuple):
    """A sample whose images have been decoded.

    Attributes:
        digest: SHA-256 of its texts and images.
        pixels: of each image, [3, H, W].
    """

    digest: str
    pixels: list[torch.Tensor]


@dataclass
class ShardBuilder:
    """Writes shards, in this process or another one.

    Attributes:
        source: samples in chunks; a chunk is a shard.
        out: folder of the shards.
        options: of train.prepare.
        vocab: layout of the ids.
        image_name: folder or name of the image tokenizer.
        marks: fingerprints of both tokenizers.
    """

    source: Source
    out: Path
    options: PrepareOptions
    vocab: Vocab
    image_name: str
    marks: dict[str, str]

    def start(self, device: str) -> None:
        """Load the tokenizers.

        Raises:
            ValueError: they are not the ones of `marks`.
        """
        self.image = ImageTokenizer.from_pretrained(self.image_name).to(device)
        self.text = TextTokenizer.load(self.out)
        found = {"image_tokenizer": self.image.fingerprint(), "text_tokenizer": self.text.fingerprint()}
        if found != self.marks:
            raise ValueError(f"the tokenizers changed while {self.out} was prepared: {found}, want {self.marks}")

    def write(self, number: int, tick: Callable[[int], None]) -> None:
        """Write the shard of a chunk. Its training file is written last, as the mark that the shard is complete.

        Args:
            number: of the chunk.
            tick: is called with the number of samples that are done.
        """
        writers = {split: ShardWriter(self.text, self.vocab) for split in SPLITS}
        skipped: list[Skip] = []
        seen: dict[str, str] = {}
        images = 0
        for batch in load_ahead(self.source.read(number), self.load, self.options.batch, self.options.workers):
            skipped += [loaded for _, loaded in batch if isinstance(loaded, Skip)]
            good = [
                (record, loaded)
                for record, loaded in batch
                if isinstance(record, Sample) and isinstance(loaded, DecodedSample)
            ]
            encoded = iter(encode_sizes([image for _, loaded in good for image in loaded.pixels], self.image))
            for record, loaded in good:
                codes = [next(encoded) for _ in loaded.pixels]
                if loaded.digest in seen:
                    skipped.append(Skip(record.name, f"duplicate: of {seen[loaded.digest]}"))
                    continue
                seen[loaded.digest] = record.name
                held_out = int(loaded.digest[:13], 16) / 16**13 < self.options.held_out
                problem = self.add(writers["held_out" if held_out else "train"], record, loaded.digest, codes)
                skipped += [problem] if problem else []
                images += 0 if problem else len(codes)
            tick(len(batch))
        if skipped:
            write_whole(self.out / f"{SKIPPED}-{number:05}.jsonl", rows_of(skipped), errors="backslashreplace")
        if writers["held_out"].manifest:
            writers["held_out"].save(self.out, "held_out", number)
        counts = dict(Counter(skip.kind for skip in skipped))
        writers["train"].save(self.out, "train", number, images=images, skipped=counts, **self.marks)

    def pixels(self, data: bytes) -> torch.Tensor:  # -> [3, H, W]
        """Decode an image, and crop its centre to the shape of the nearest grid."""
        if not self.vocab.grids:
            return self.image.pixels(data)
        opened = open_image(data)
        grid = nearest_grid(opened.width / opened.height, (self.image.grid, *self.vocab.grids))
        return self.image.pixels(opened, self.image.size_of(grid))

    def load(self, record: Sample | Skip) -> DecodedSample | Skip:
        """Read the images of a sample."""
        if isinstance(record, Skip):
            return record
        digest, pixels = hashlib.sha256(), []
        try:
            for piece in record.pieces:
                data = piece.encode() if isinstance(piece, str) else piece.read()
                digest.update(f"{'text' if isinstance(piece, str) else 'image'} {len(data)}\n".encode() + data)
                if not isinstance(piece, str):
                    pixels.append(self.pixels(data))
        except OSError as error:
            return Skip(record.name, f"cannot be read: {error.strerror}")
        except ValueError as error:
            return Skip(record.name, str(error).removeprefix("the image: "))
        return DecodedSample(digest.hexdigest(), pixels)

    def add(self, writer: ShardWriter, record: Sample, digest: str, grids: list[torch.Tensor]) -> Skip | None:
        """Add the documents of a sample to a shard, or return why there are none.

        Args:
            writer: of the shard.
            record: the sample.
            digest: of its content.
            grids: codes of its images, [h, w] each.
        """
        defaults, limit, facts = self.options, self.options.max_tokens, record.facts
        row = {
            "name": record.name,
            "source": facts.source or defaults.source,
            "licence": facts.licence or defaults.licence,
            "owner": facts.owner or defaults.owner,
            "sha256": digest,
        }
        if record.interleaved:
            codes = iter(grids)
            items = (Text(piece) if isinstance(piece, str) else Image(next(codes)) for piece in record.pieces)
            pieces = cut(encode(Document(tuple(items)), self.vocab, self.text).ids, limit, self.vocab)
            writer.sample(**row, documents=len(pieces))
            for ids in pieces:
                writer.add_ids(ids)
            return None
        text, image = str(record.pieces[0]), Image(grids[0])
        prompts = WORDS[self.vocab.form]["caption"]
        prompt = prompts.get(facts.language) or prompts[defaults.language]
        asked = encode(questions([Target("caption", prompt, text)], image), self.vocab, self.text)
        if len(asked.ids) > limit:
            return Skip(record.name, f"too long: {len(asked.ids)} tokens, the limit is {limit}")
        writer.sample(**row, documents=2)
        writer.add(Document((Text(text), image)))
        writer.add_ids(*asked)
        return None


def cut(ids: list[int], limit: int, vocab: Vocab) -> list[list[int]]:
    """Split an encoded document into documents of at most `limit` ids.

    It is split between texts and images. Only a text that is longer than a document is split between its tokens.
    """
    documents: list[list[int]] = []
    here: list[list[int]] = []  # the parts of the current document
    room = limit - len(join([], vocab).ids)
    for part in parts(ids, vocab):
        piece = ids[part.start : part.end]
        if len(join([*here, piece], vocab).ids) > limit:
            documents += [join(here, vocab).ids] if here else []
            while len(piece) > room:
                documents.append(join([piece[:room]], vocab).ids)
                piece = piece[room:]
            here = []
        here.append(piece)
    return [*documents, join(here, vocab).ids] if here else documents


def rows_of(skips: list[Skip]) -> str:
    """Return skipped samples as lines of JSON."""
    return "".join(json.dumps(skip._asdict(), ensure_ascii=False) + "\n" for skip in skips)
