"""Reranking: which of several candidates fits the prompt best. The model rates how likely the prompt is as the caption
of a candidate; its scorer, where it has one, rates it too (CM3leon reranks 8 candidates by CLIP)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cm3.model.scorer import Scorer
from cm3.model.transformer import CM3ForCausalLM
from cm3.tasks.prompts import MAX_TEXT, Prompts
from cm3.tokens.document import Image
from cm3.tokens.encoding import completion_ids
from cm3.tokens.templates import WORDS, language_of


def standard(values: Tensor) -> Tensor:  # [N] -> [N]
    """Return the values in standard deviations from their mean."""
    return (values - values.mean()) / values.std(correction=0).clamp(min=1e-6)


@torch.inference_mode()
def caption_log_probs(model: CM3ForCausalLM, prompts: Prompts, words: str, codes: Sequence[Tensor]) -> Tensor:  # -> [N]
    """Compute the log-probability of a text as the caption of each image, given as codes [h, w]."""
    captions = WORDS[prompts.vocab.form]["caption"]
    asked = captions.get(language_of(words), captions["en"])
    *text, eos = completion_ids(words, prompts.vocab, prompts.text_tokenizer)
    caption = [*text[:MAX_TEXT], eos]
    rows = [prompts.question_ids(asked, Image(grid)) + caption for grid in codes]
    ids = torch.tensor(rows, device=model.device)  # [N, T]
    logits = model(input_ids=ids).logits[:, -len(caption) - 1 : -1].float()  # [N, caption, V]
    return logits.log_softmax(-1).gather(2, ids[:, -len(caption) :, None]).sum((1, 2)).cpu()


@torch.inference_mode()
def best(model: CM3ForCausalLM, prompts: Prompts, scorer: Scorer | None, words: str, codes: Sequence[Tensor]) -> int:
    """Return the index of the codes that fit a text best, the first of equals.

    The ratings of the model and of the scorer are added, each in standard deviations.
    """
    fit = standard(caption_log_probs(model, prompts, words, codes))
    if scorer and codes[0].shape == prompts.grid:
        fit += standard(scorer.score([prompts.text_tokenizer.encode(words)], torch.stack(list(codes))).cpu())
    return int(fit.argmax())


def best_of_each(
    texts: Sequence[str], codes: Sequence[Tensor], best: Callable[[str, Sequence[Tensor]], int]
) -> list[Tensor]:
    """The best candidate for each text.

    Args:
        texts: what each image should show.
        codes: equally many candidates, [h, w] each, for each text, side by side.
        best: index of the candidate that fits a text best; not called where there is only one.
    """
    if len(codes) == len(texts):
        return list(codes)
    count = len(codes) // len(texts)
    groups = [codes[i : i + count] for i in range(0, len(codes), count)]
    return [group[best(text, group)] for text, group in zip(texts, groups, strict=True)]
