"""A model with its tokenizers, and what runs requests on it: below the tasks of pipeline.py, for those who want ids and
codes.

Letters in shapes: T tokens, h x w codes of a picture.
"""

# torch and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from PIL import Image as PIL_Image
from torch import Tensor

from cm3.engine.engine import Engine
from cm3.engine.request import Request
from cm3.model.scorer import Scorer
from cm3.model.transformer import CM3ForCausalLM
from cm3.tasks import reranking as ranking
from cm3.tasks.completion import Completion
from cm3.tasks.images import Processor
from cm3.tasks.jobs import Job, Jobs
from cm3.tasks.known_words import KnownWords
from cm3.tasks.prompts import Prompts
from cm3.tasks.streaming import Piece, pieces
from cm3.tokens.encoding import grid_behind
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Grid, Vocab
from tokenizer_image import ImageTokenizer
from tokenizer_image.pixels import MAX_PIXELS


class Score(NamedTuple):
    """ids: [T - 1], the document after its opening <eos>. log_probs: [T - 1], natural logarithm for each of them."""

    ids: Tensor
    log_probs: Tensor


class Runner:
    """Errors: ValueError for tokenizers, or a scorer, that do not belong to the model."""

    def __init__(
        self,
        model: CM3ForCausalLM,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        scorer: Scorer | None = None,
        max_pixels: int = MAX_PIXELS,
        compile: bool = False,
        known_words: KnownWords | None = None,
    ) -> None:
        config = model.config
        for what, has, wants in (
            ("the text tokenizer's ids", len(text_tokenizer), config.text_vocab_size),
            ("the image tokenizer's codes", image_tokenizer.num_codes, config.image_vocab_size),
        ):
            if has > wants:
                raise ValueError(f"{what} are {has}, but the model knows {wants}: they do not belong together")
        if image_tokenizer.grid != tuple(config.image_grid):
            raise ValueError(
                f"the image tokenizer's grid is {image_tokenizer.grid}, but the model's "
                f"{tuple(config.image_grid)}: they do not belong together"
            )
        if scorer:
            scorer.check(text_tokenizer.fingerprint(), image_tokenizer.fingerprint())
        self.model = model.eval()
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer = image_tokenizer
        self.scorer = scorer
        self.vocab = Vocab.from_config(config)
        self.grid: tuple[int, int] = image_tokenizer.grid
        self.context: int = config.max_position_embeddings
        self.processor = Processor(self.vocab, text_tokenizer, image_tokenizer, max_pixels)
        self.prompts = Prompts(self.vocab, text_tokenizer, self.grid, self.context)
        self.jobs = Jobs(self.processor, self.prompts, known_words or KnownWords())
        self.engine = Engine(self.model, self.vocab, self.grid, compile=compile)
        self.completion = Completion(self.processor, self.prompts, self.engine.stream)

    @property
    def known_words(self) -> KnownWords:
        """What the model has read."""
        return self.jobs.known_words

    def run(self, requests: Sequence[Request]) -> list[list[int]]:
        """The new ids of each request, those with prompts of like length side by side."""
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        new = self.engine.generate([requests[i] for i in order])
        return [ids for _, ids in sorted(zip(order, new, strict=True))]

    def draw_codes(self, requests: Sequence[Request]) -> list[Tensor]:
        """The codes, [h, w], of the picture that each request drew."""
        return self._codes(requests, self.run(requests))

    def _codes(self, requests: Sequence[Request], drawn: Sequence[list[int]]) -> list[Tensor]:
        grids = [grid_behind(request.prompt, self.vocab) for request in requests]
        return [self.processor.codes(ids, grid) for ids, grid in zip(drawn, grids, strict=True)]

    def pictures(self, job: Job) -> list[PIL_Image.Image]:
        """What the requests of the job drew."""
        return self._shown(job, self.draw_codes(job.requests))

    def pictures_of(self, job: Job, new: Iterable[tuple[int, int]]) -> list[PIL_Image.Image]:
        """The same from the requests' new ids, each with the number of its request."""
        drawn = [list[int]() for _ in job.requests]
        for number, id in new:
            drawn[number].append(id)
        return self._shown(job, self._codes(job.requests, drawn))

    def _shown(self, job: Job, codes: Sequence[Tensor]) -> list[PIL_Image.Image]:
        return [job.show(i, one) for i, one in enumerate(self.picked(job, codes))]

    def texts(self, requests: Sequence[Request]) -> list[str]:
        """What each request wrote."""
        return [self.processor.text(ids).strip() for ids in self.run(requests)]

    def pieces(
        self,
        new: Iterator[tuple[int, int]],
        show: Callable[[int, Tensor], PIL_Image.Image],
        grids: Sequence[Grid | None] = (),
    ) -> Generator[Piece]:
        """Of ids with the numbers of what they belong to; what a picture lacks is white. grids: of the pictures by
        their numbers, None = the usual one; what the ids say of themselves counts more."""
        blanks: dict[Grid | None, list[int]] = {}

        def picture(number: int, ids: list[int], grid: Grid) -> PIL_Image.Image:
            own = None if grid == self.grid else grid
            if own not in blanks:
                blanks[own] = self.processor.blank(own)
            return show(number, self.processor.codes(ids + blanks[own][len(ids) :], own))

        usual = dict(enumerate(grid or self.grid for grid in grids))
        return pieces(new, self.vocab, self.grid, usual, self.processor.text, picture)

    def streamed(self, job: Job) -> Generator[Piece]:
        """The job's texts and pictures as they come. Of several candidates of a picture the first is shown while all
        are drawn, and then the best."""
        grids = [grid_behind(request.prompt, self.vocab) for request in job.requests]
        new = self.engine.stream(job.requests)
        return self.pieces(new, job.show, grids) if job.best_of == 1 else self._candidates(job, new, grids)

    def _candidates(self, job: Job, new: Iterator[tuple[int, int]], grids: Sequence[Grid | None]) -> Generator[Piece]:
        all_ids: list[tuple[int, int]] = []

        def first() -> Iterator[tuple[int, int]]:
            for number, id in new:
                all_ids.append((number, id))
                if number % job.best_of == 0:
                    yield number // job.best_of, id

        yield from self.pieces(first(), job.show, grids[:: job.best_of])
        for i, picture in enumerate(self.pictures_of(job, all_ids)):
            yield Piece(i, picture)

    def best(self, words: str, codes: Sequence[Tensor]) -> int:
        """Which of the pictures, codes [h, w], fits the words best (reranking.py)."""
        return ranking.best(self.model, self.prompts, self.scorer, words, codes)

    def picked(self, job: Job, codes: Sequence[Tensor]) -> list[Tensor]:
        """The codes [h, w] of each picture: of its candidates, which the job's requests gave, the best."""
        if job.best_of == 1:
            return list(codes)
        candidates = [codes[i : i + job.best_of] for i in range(0, len(codes), job.best_of)]
        return [some[self.best(words, some)] for words, some in zip(job.wished, candidates, strict=True)]

    def caption_log_probs(self, words: str, codes: Sequence[Tensor]) -> Tensor:  # -> [N]
        """Log-probability of the words as the caption of each picture, codes [h, w]."""
        return ranking.caption_log_probs(self.model, self.prompts, words, codes)

    @torch.inference_mode()
    def score_ids(self, document: Sequence[int]) -> Score:
        """How likely the model finds each id of a document after its opening <eos>. Errors: ValueError for more ids
        than the model holds."""
        ids = torch.tensor(document)  # [T]
        if len(ids) > self.context:
            raise ValueError(f"a document of {len(ids)} tokens is too long: the model holds {self.context}")
        logits = self.model(input_ids=ids[None].to(self.model.device)).logits[0, :-1].float().cpu()  # [T - 1, V]
        log_probs = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        return Score(ids[1:], log_probs)
