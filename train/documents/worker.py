"""What writes one shard of a person's own data: images to codes, texts to ids, samples to documents.

A caption with its image gives two documents, for drawing and for captioning; an interleaved sample is one as it
reads, cut where it is too long.
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
from train.images.codes import load_ahead

SKIPPED = "skipped"


@dataclass(frozen=True)
class PrepareOptions:
    """What goes into the shards.

    Attributes:
        image_tokenizer: folder or name; "" = "emoji", or the model's.
        model: folder or name of a CM3 model whose tokenizers and vocabulary to keep; "" = train a text tokenizer.
        text_vocab: ids of the text tokenizer, at most.
        text_sample: texts it is trained on, at most.
        language: of the captions' prompt ("en" or "ar"), where a sample does not say.
        held_out: share of the samples that are kept for evaluation; the same content always falls on the same side.
        max_tokens: of a document; longer interleaved samples are cut. 0 = 4096, or the model's context if that is less.
        samples: of the source a shard; a shard of a tar takes 64 MB instead.
        batch: images that go through the image tokenizer together.
        workers: threads a process that read and decode images.
        grids: of images that are not square, such as "6x10 10x6", besides the image tokenizer's own: rows and columns
            of codes. An image takes the nearest. A model brings its own.
        source, licence, owner: noted for samples that do not say.
        format: as for train.documents.sources.open_source.
        image_column, text_column: of tables; "" = one of the usual names.
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
    """A sample whose images have been decoded, [3, H, W] each; `digest`: SHA-256 of all it holds."""

    digest: str
    pixels: list[torch.Tensor]


@dataclass
class ShardBuilder:
    """What writes shards, in this process or another one."""

    source: Source
    out: Path
    options: PrepareOptions
    vocab: Vocab
    image_name: str
    marks: dict[str, str]

    def start(self, device: str) -> None:
        """Load the tokenizers."""
        self.image = ImageTokenizer.from_pretrained(self.image_name).to(device)
        self.text = TextTokenizer.load(self.out)
        found = {"image_tokenizer": self.image.fingerprint(), "text_tokenizer": self.text.fingerprint()}
        if found != self.marks:
            raise ValueError(f"the tokenizers changed while {self.out} was prepared: {found}, want {self.marks}")

    def write(self, number: int, tick: Callable[[int], None]) -> None:
        """Write the shard of one chunk; what marks that it is done comes last. `tick` hears of samples."""
        writers = {split: ShardWriter(self.text, self.vocab) for split in SPLITS}
        skipped: list[Skip] = []
        seen: dict[str, str] = {}
        images = 0
        for batch in load_ahead(self.source.read(number), self.load, self.options.batch, self.options.workers):
            skipped += [what for _, what in batch if isinstance(what, Skip)]
            good = [
                (record, what)
                for record, what in batch
                if isinstance(record, Sample) and isinstance(what, DecodedSample)
            ]
            grids = iter(self.encode([part for _, what in good for part in what.pixels]))
            for record, what in good:
                codes = [next(grids) for _ in what.pixels]
                if what.digest in seen:
                    skipped.append(Skip(record.name, f"duplicate: of {seen[what.digest]}"))
                    continue
                seen[what.digest] = record.name
                held_out = int(what.digest[:13], 16) / 16**13 < self.options.held_out
                problem = self.add(writers["held_out" if held_out else "train"], record, what.digest, codes)
                skipped += [problem] if problem else []
                images += 0 if problem else len(codes)
            tick(len(batch))
        if skipped:
            write_whole(self.out / f"{SKIPPED}-{number:05}.jsonl", rows_of(skipped), errors="backslashreplace")
        if writers["held_out"].manifest:
            writers["held_out"].save(self.out, "held_out", number)
        counts = dict(Counter(skip.kind for skip in skipped))
        writers["train"].save(self.out, "train", number, images=images, skipped=counts, **self.marks)

    def encode(self, pixels: list[torch.Tensor]) -> list[torch.Tensor]:
        """[3, H, W] each -> [h, w] each: images of one size together."""
        codes: dict[int, torch.Tensor] = {}
        for size in dict.fromkeys(part.shape for part in pixels):
            places = [i for i, part in enumerate(pixels) if part.shape == size]
            found = self.image.encode_pixels(torch.stack([pixels[i] for i in places]))
            codes |= dict(zip(places, found, strict=True))
        return [codes[i] for i in range(len(pixels))]

    def pixels(self, data: bytes) -> torch.Tensor:  # -> [3, H, W]
        """What the tokenizer sees of an image: its middle, in the shape of the nearest grid."""
        if not self.vocab.grids:
            return self.image.pixels(data)
        opened = open_image(data)
        grid = nearest_grid(opened.width / opened.height, (self.image.grid, *self.vocab.grids))
        return self.image.pixels(opened, self.image.size_of(grid))

    def load(self, record: Sample | Skip) -> DecodedSample | Skip:
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
        """Write the documents of a sample; or why there are none."""
        limit, facts = self.options.max_tokens, record.facts
        defaults = self.options
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
        words, image = str(record.pieces[0]), Image(grids[0])
        prompts = WORDS[self.vocab.form]["caption"]
        prompt = prompts.get(facts.language) or prompts[defaults.language]
        asked = encode(questions([Target("caption", prompt, words)], image), self.vocab, self.text)
        if len(asked.ids) > limit:
            return Skip(record.name, f"too long: {len(asked.ids)} tokens, the limit is {limit}")
        writer.sample(**row, documents=2)
        writer.add(Document((Text(words), image)))
        writer.add_ids(*asked)
        return None


def cut(ids: list[int], limit: int, vocab: Vocab) -> list[list[int]]:
    """A finished document in documents of at most `limit` ids each.

    Cuts lie where text and image meet; a text that is longer than a document is cut between its tokens.
    """
    documents: list[list[int]] = []
    here: list[list[int]] = []  # the parts of one
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
    return "".join(json.dumps(skip._asdict(), ensure_ascii=False) + "\n" for skip in skips)
