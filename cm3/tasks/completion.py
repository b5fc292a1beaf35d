"""Completion of documents: draw the missing codes of images, then fill masks with text, or write on to the end."""

from PIL import Image as PIL_Image
from torch import Tensor

from cm3.engine.guidance import ClassifierFree
from cm3.engine.options import CompleteOptions
from cm3.engine.request import Request
from cm3.tasks.images import Processor
from cm3.tasks.job import Batch, Phases
from cm3.tasks.prompts import Prompts
from cm3.tokens.document import Document, Image, Mask, check_document, has_mask
from cm3.tokens.encoding import from_ids, next_span_ids, prompt_ids, reply_ids


def complete(processor: Processor, prompts: Prompts, document: Document, options: CompleteOptions) -> Phases[Document]:
    """Complete a document: a batch for each image with holes, then one for each mask, or one that writes on.

    Raises:
        ValueError: a document that the model cannot hold, or guidance where masks are filled.
    """
    guide = ClassifierFree(options.guidance, options.text_guidance)
    check_document(document)
    if has_mask(document) and not guide.off:
        raise ValueError("guidance counts where a document is written on: this one has masks, fill them without")
    items, drawn = list(document), 0

    def show(_: int, codes: Tensor) -> PIL_Image.Image:
        return processor.decode(codes)

    def batch(request: Request) -> Batch:
        return Batch([request], show, [drawn])

    for i, item in enumerate(items):
        if isinstance(item, Image) and item.holes:
            before = Document(tuple(one for one in items[: i + 1] if not isinstance(one, Mask)))
            [codes] = yield batch(prompts.hole(before, guide.image, options.sampling, options.seed))
            items[i] = Image(processor.codes(codes, item.grid))
            drawn += 1
    whole = Document(tuple(items))
    ids = prompts.ids(whole, prompt_ids if has_mask(whole) else reply_ids)
    masks = sum(isinstance(item, Mask) for item in items)
    room = max(1, (prompts.context - len(ids) + 1) // max(masks, 1) - 1)  # tokens for each mask, beside its opening
    for k in range(masks):
        ids += next_span_ids(k, prompts.vocab) if k else []
        [text] = yield batch(Request(list(ids), "text", room, options.sampling, seed=options.seed))
        ids += text
        drawn += 1
    if not masks:
        [more] = yield batch(prompts.more(whole, guide, options.sampling, prompts.context, options.seed))
        ids += more
    return from_ids(ids, processor.vocab, processor.text_tokenizer, processor.grid)
