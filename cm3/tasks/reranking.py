"""Which of some drawings fits the words best: by how likely the model itself finds the words as their caption, and by
its scorer where it has one (CM3leon re-ranks 8 drawings by CLIP)."""

# torch leaves some of its functions without types.
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence

import torch
from torch import Tensor

from cm3.model.scorer import Scorer
from cm3.model.transformer import CM3ForCausalLM
from cm3.tasks.prompts import MAX_TEXT, Prompts
from cm3.tokens.document import Image
from cm3.tokens.encoding import last_ids
from cm3.tokens.templates import WORDS, language_of


def standard(values: Tensor) -> Tensor:  # [N] -> [N]
    """In standard deviations from their mean."""
    return (values - values.mean()) / values.std(correction=0).clamp(min=1e-6)


@torch.inference_mode()
def caption_log_probs(model: CM3ForCausalLM, prompts: Prompts, words: str, codes: Sequence[Tensor]) -> Tensor:  # -> [N]
    """Log-probability of the words as the caption of each picture, codes [h, w]."""
    asked = WORDS[prompts.vocab.form]["caption"][language_of(words)]
    *said, close = last_ids(words, prompts.vocab, prompts.text_tokenizer)
    said = [*said[:MAX_TEXT], close]
    rows = [prompts.asked(asked, Image(grid)) + said for grid in codes]
    ids = torch.tensor(rows, device=model.device)  # [N, T]
    logits = model(input_ids=ids).logits[:, -len(said) - 1 : -1].float()  # [N, words, V]
    return logits.log_softmax(-1).gather(2, ids[:, -len(said) :, None]).sum((1, 2)).cpu()


@torch.inference_mode()
def best(model: CM3ForCausalLM, prompts: Prompts, scorer: Scorer | None, words: str, codes: Sequence[Tensor]) -> int:
    """The number of the codes that fit the words best, the first of equals: by both opinions, in standard deviations
    each."""
    fit = standard(caption_log_probs(model, prompts, words, codes))
    if scorer and codes[0].shape == prompts.grid:
        fit += standard(scorer.score([prompts.text_tokenizer.encode(words)], torch.stack(list(codes))).cpu())
    return int(fit.argmax())
