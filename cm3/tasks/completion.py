"""Documents written on: holes in pictures drawn, masks filled with text, or more text and pictures to the end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cm3.engine.guidance import ClassifierFree
from cm3.engine.options import COMPLETE, GenerationOptions, SamplingConfig
from cm3.engine.request import Request
from cm3.tasks.images import Processor
from cm3.tasks.prompts import Prompts
from cm3.tokens.document import Document, Image, Mask, check_document, has_mask
from cm3.tokens.encoding import next_span_ids, prompt_ids, reply_ids

New = Iterator[tuple[int, int]]  # (number of the picture or text, id)


@dataclass(frozen=True)
class Completion:
    """Completes documents of a model. stream: the engine's, of requests.

    Errors: ValueError for a document that the model cannot hold, or guidance where masks are filled."""

    processor: Processor
    prompts: Prompts
    stream: Callable[[list[Request]], New]

    def write(self, ids: list[int], document: Document, options: GenerationOptions = COMPLETE) -> New:
        """Fill the empty list `ids` with the completed document's; yields all that is new. What is wrong is said at
        once."""
        guide = ClassifierFree(options.guidance, options.text_guidance)
        check_document(document)
        if has_mask(document) and not guide.off:
            raise ValueError("guidance counts where a document is written on: this one has masks, fill them without")
        return self._written(ids, document, guide, options.sampling, options.seed)

    def _written(
        self, ids: list[int], document: Document, guide: ClassifierFree, sampling: SamplingConfig, seed: int
    ) -> New:
        items, number = list(document), 0
        for i, item in enumerate(items):
            if isinstance(item, Image) and item.holes:
                before = Document(tuple(one for one in items[: i + 1] if not isinstance(one, Mask)))
                codes: list[int] = []
                for _, id in self.stream([self.prompts.hole(before, guide.image, sampling, seed)]):
                    codes.append(id)
                    yield number, id
                items[i] = Image(self.processor.codes(codes, item.grid))
                number += 1
        whole = Document(tuple(items))
        ids += self.prompts.ids(whole, prompt_ids if has_mask(whole) else reply_ids)
        if masks := sum(isinstance(item, Mask) for item in document):
            yield from self._fill(ids, number, masks, sampling, seed)
        else:
            yield from self._go_on(ids, number, self.prompts.more(whole, guide, sampling, self.prompts.context, seed))

    def _fill(self, ids: list[int], number: int, masks: int, sampling: SamplingConfig, seed: int) -> New:
        """Text for each mask, to be appended to the prompt `ids`."""
        room = max(1, (self.prompts.context - len(ids) + 1) // masks - 1)  # for each span, beside its opening
        for k in range(masks):
            ids += next_span_ids(k, self.prompts.vocab) if k else []
            for _, id in self.stream([Request(list(ids), "text", room, sampling, seed=seed)]):
                ids.append(id)
                yield number + k, id

    def _go_on(self, ids: list[int], number: int, request: Request) -> New:
        """More text and pictures, to be appended to `ids`; each run of text and each picture has its number."""
        vocab, number, kind = self.prompts.vocab, number - 1, None
        for _, id in self.stream([request]):
            ids.append(id)
            now = "text" if vocab.is_text(id) else "picture" if vocab.is_code(id) else None
            number += now not in (None, kind)
            kind = now
            yield number, id
