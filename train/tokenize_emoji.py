"""Turn the data set into token shards: images in several views to codes, what is said of them to text ids.

    python -m train.tokenize_emoji --data data/emoji --config tokenize_emoji --image-tokenizer runs/decoder/model

OUT receives what train/documents/shards.py describes, and concepts.json: the concepts in it, with their names. The text
tokenizer is trained here, on the training split alone; with --start MODEL both tokenizers are that model's, to train it
on. Held out are the data set's unseen cells: a known thing in a new style.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from rich.progress import track

from cm3.pipeline import CM3
from cm3.tokens.document import Document, Image, Text
from cm3.tokens.templates import LANGUAGES
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.documents.shards import NUM_SPECIAL, ShardWriter, clear, finish, questions
from train.emoji.dataset import EVERYDAY, EXTRA, EmojiImages, manifest_row, others_of, read_images
from train.emoji.phrases import Facts, caption, name_targets, targets
from train.images.codes import encode_views
from train.images.views import GROUNDS, PLAIN, Augmentation, View
from train.runtime import config as configs

PER_SHARD = 2**16  # documents a shard, about
HELD_OUT_VIEWS = 2  # of each held-out image; the first is plain
DISTORTED = 0.7  # of the views of extra styles


@dataclass(frozen=True)
class TokenizeConfig:
    """What goes into the shards.

    Attributes:
        subgroups: Unicode subgroups of the concepts; empty = all of them.
        views: views of each image; the first is plain.
        distorted: further views, in another form and other colours: only asked what they show.
        extra: views of each image of the extra styles, seven in ten of them distorted; asked in the same way.
        grounds: views after the first that are the plain one on coloured grounds.
        plain: documents of the plain view that are captions with the image; 0 = `draw`.
        draw: documents of each other view that are captions with the image, in turn in each language.
        draw_moved: whether views that are shifted, scaled or mirrored are drawn too, or only asked about. Their codes
            are new each time: a model learns to see from them, but not which image belongs to the words.
        styled: share of the captions that name the style.
        ask: documents a view that ask something.
        text_vocab: ids of the text tokenizer, at most.
        max_sharing: a keyword may name at most so many concepts to stand for one.
        seed: of everything random.
        white: share of white grounds among the views after the first.
        scale: smallest scale of a view.
        shift: largest shift of a view, in pixels of an image of 64.
        mirror: share of mirrored views.
    """

    subgroups: tuple[str, ...] = EVERYDAY
    views: int = 24
    distorted: int = 0
    extra: int = 0
    grounds: int = 0
    plain: int = 0
    draw: int = 2
    draw_moved: bool = True
    styled: float = 0.3
    ask: int = 2
    text_vocab: int = 4096
    max_sharing: int = 6
    seed: int = 0
    white: float = 0.6
    scale: float = 0.85
    shift: int = 2
    mirror: float = 0.5


def aliases_of(rows: list[Facts], max_sharing: int) -> dict[tuple[str, str], list[str]]:
    """(code, language) -> keywords that name this concept and few others."""
    owners: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        for language in LANGUAGES:
            for word in row["keywords"][language]:
                owners[language, word].add(row["code"])
    out: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for language in LANGUAGES:
            words = [word for word in row["keywords"][language] if len(owners[language, word]) <= max_sharing]
            out[row["code"], language] = words
    return out


def texts(rows: list[Facts], config: TokenizeConfig) -> Iterator[str]:
    """What the text tokenizer is trained on: names, keywords, and each kind of phrase, of the training split."""
    rng = np.random.default_rng(config.seed)
    by_kind = others_of(rows)
    for row in rows:
        for language in LANGUAGES:
            yield from (" " + word for word in (row["name"][language], *row["keywords"][language]))
            yield caption(row, "white", language, [], rng)
            for target in targets(row, "white", language, by_kind[row["subgroup"]], rng):
                yield target.prompt
                yield target.answer


def views_of(config: TokenizeConfig, augmentation: Augmentation, rng: np.random.Generator, size: int) -> list[View]:
    """The views of one image: plain, plain on coloured grounds, moved, and distorted."""
    coloured = [View(ground) for ground in rng.permutation(list(GROUNDS)[1:])[: config.grounds].tolist()]
    first = [PLAIN, *coloured][: config.views]
    moved = [augmentation.sample(rng, size) for _ in range(config.views - len(first))]
    more = [augmentation.sample(rng, size) for _ in range(config.distorted)]
    return [*first, *moved, *(distorted(view, rng) for view in more)]


def extra_views(config: TokenizeConfig, augmentation: Augmentation, rng: np.random.Generator, size: int) -> list[View]:
    """The views of one image of an extra style."""
    moved = [augmentation.sample(rng, size) for _ in range(config.extra)]
    return [distorted(view, rng) if rng.random() < DISTORTED else view for view in moved]


def distorted(view: View, rng: np.random.Generator) -> View:
    return replace(view, distortion=int(rng.integers(2**31)))


def drawn_times(view: View, config: TokenizeConfig) -> int:
    """How many documents draw this view."""
    if view == PLAIN and config.plain:
        return config.plain
    if view.distortion is not None:
        return 0
    return config.draw if config.draw_moved or view == View(view.ground) else 0


class Documents:
    """Writes the documents of a split, PER_SHARD to a shard, and counts what they ask."""

    def __init__(self, text: TextTokenizer, vocab: Vocab, out: Path, split: str):
        self.text, self.vocab, self.out, self.split = text, vocab, out, split
        self.writer, self.number, self.tasks = ShardWriter(text, vocab), 0, Counter[str]()

    def image(
        self,
        views: list[View],
        codes: torch.Tensor,
        row: Facts,
        others: list[Facts],
        config: TokenizeConfig,
        aliases: dict[tuple[str, str], list[str]],
        rng: np.random.Generator,
        names_alone: bool = False,
    ) -> None:
        """Every document of one image: for each view captions and questions, in turn in each language; with
        `names_alone` nothing is asked that is not asked of a distorted view."""
        for j, view in enumerate(views):
            image = Image(codes[j])
            for k in range(drawn_times(view, config)):
                language = LANGUAGES[(j + k) % 2]
                names = aliases.get((row["code"], language), [])
                self.writer.add(Document((Text(caption(row, view.ground, language, names, rng, config.styled)), image)))
                self.tasks["draw"] += 1
            for k in range(config.ask):
                language = LANGUAGES[(j + k) % 2]
                if names_alone or view.distortion is not None:
                    asked = name_targets(row, language, others, rng)
                else:
                    asked = targets(row, view.ground, language, others, rng)
                self.writer.add(questions(asked, image))
                self.tasks.update(target.task for target in asked)

    def close(self, least: int = 1) -> None:
        """Save the shard where it holds at least so many documents."""
        if len(self.writer.texts) >= least:
            self.writer.save(self.out, self.split, self.number)
            self.writer, self.number = ShardWriter(self.text, self.vocab), self.number + 1


class Part(NamedTuple):
    """Images whose documents are made alike: which split they go to, how, and whether their style is an extra one."""

    split: str
    images: EmojiImages
    config: TokenizeConfig
    extra: bool = False


def build(
    data: Path,
    image_tokenizer: ImageTokenizer,
    out: Path,
    config: TokenizeConfig,
    name: str = "",
    text: TextTokenizer | None = None,
) -> dict:
    """Everything above in order. Returns the content of meta.json.

    Args:
        data: folder of the data set.
        image_tokenizer: that makes the codes.
        out: folder of the shards; those that are there are replaced.
        config: what goes into them.
        name: under which the image tokenizer is found again; noted.
        text: text tokenizer; None = train one.

    Raises:
        ValueError: no data set, or nothing of the chosen subgroups in it.
    """
    train = read_images(data, "train", config.subgroups)
    if not train.rows:
        raise ValueError(f"no training image in {data} belongs to the subgroups {', '.join(config.subgroups)}")
    text = text or TextTokenizer.train(texts(train.rows, config), config.text_vocab)
    vocab = Vocab(NUM_SPECIAL, len(text), image_tokenizer.num_codes)
    concepts = {row["code"]: {"name": row["name"], "subgroup": row["subgroup"]} for row in train.rows}
    parts = [Part("train", train, config)]
    if config.extra:
        more = read_images(data, EXTRA, config.subgroups, set(concepts))
        parts.append(Part("train", more, replace(config, plain=0, draw=0, ask=1), extra=True))
    if any((data / "unseen_cell").glob("*.tar")):  # both languages, and few views: it is read at every evaluation
        few = replace(config, views=min(HELD_OUT_VIEWS, config.views), grounds=0, plain=2, draw=2, ask=2, distorted=0)
        parts.append(Part("held_out", read_images(data, "unseen_cell", config.subgroups, set(concepts)), few))
    aliases, by_kind = aliases_of(train.rows, config.max_sharing), others_of(train.rows)
    augmentation, size = Augmentation(config.white, config.scale, config.shift, config.mirror), image_tokenizer.size[0]
    clear(out)
    written = {split: Documents(text, vocab, out, split) for split in dict.fromkeys(part.split for part in parts)}
    for split, images, settings, extra in parts:
        rng = np.random.default_rng((config.seed, 1) if extra else config.seed)
        chosen = extra_views if extra else views_of
        views = [chosen(settings, augmentation, rng, size) for _ in images.rows]
        codes = encode_views(images.drawings, views, image_tokenizer) if views else []
        documents = written[split]
        for i, row in enumerate(track(images.rows, f"documents, {split}")):
            count = sum(drawn_times(view, settings) for view in views[i]) + len(views[i]) * settings.ask
            documents.writer.sample(**manifest_row(images.keys[i], row, images.origins[i], count))
            others = [other for other in by_kind[row["subgroup"]] if other["family"] != row["family"]]
            documents.image(views[i], codes[i], row, others, settings, aliases, rng, names_alone=extra)
            documents.close(PER_SHARD)
    for documents in written.values():
        documents.close()
    (out / "concepts.json").write_text(json.dumps(concepts, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return finish(
        out,
        text,
        vocab,
        image_tokenizer,
        images=len(train.rows),
        concepts=len(concepts),
        tasks=dict(written["train"].tasks),
        styles=dict(Counter(row["style"] for row in train.rows)),
        config=asdict(config),
        image_tokenizer_name=name,
    )


def main(
    data: Annotated[Path, typer.Option(help="folder of the data set")] = Path("data/emoji"),
    image_tokenizer: Annotated[str, typer.Option(help="folder or name")] = "runs/decoder/model",
    out: Annotated[Path, typer.Option(help="folder of the token shards")] = Path("data/emoji-tokens"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
    start: Annotated[str, typer.Option(help="model whose tokenizers are taken: folder or name")] = "",
) -> None:
    try:
        settings = configs.load(TokenizeConfig, config, overrides)
        if start:
            model = CM3.from_pretrained(start, device="cpu")
            meta = build(data, model.image_tokenizer, out, settings, text=model.text_tokenizer)
        else:
            meta = build(data, ImageTokenizer.from_pretrained(image_tokenizer), out, settings, image_tokenizer)
        print(json.dumps({key: meta[key] for key in ("images", "concepts", "documents", "tokens")}))
    except (OSError, ValueError) as error:
        raise SystemExit(f"tokenize_emoji: {error}") from None


if __name__ == "__main__":
    typer.run(main)
