"""A request that the engine works on, and the sampling of its next id.

Ids that the form of a document or the request fixes are not sampled. The model reads them in the prefill, or later as
many at once as every request has.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cm3.engine.guidance import ClassifierFree, ContrastiveTopK, Guide, forbid
from cm3.engine.request import Request
from cm3.engine.sampling import Uniforms, sample
from cm3.tensors import to_ints
from cm3.tokens.alphabet import Written
from cm3.tokens.grammar import Grammar, Legal, legal_mask
from cm3.tokens.vocab import Vocab


def take_forced(grammar: Grammar) -> list[int]:
    """Advance the grammar to the next id that has to be sampled, and return the ids before it."""
    ids: list[int] = []
    while not grammar.done and (id := grammar.forced()) is not None:
        if grammar.advance(id):
            ids.append(id)
    return ids


class Prefill(NamedTuple):
    """What is read before the first id of a request is sampled.

    Attributes:
        guide: the request's guide, None if it is off.
        prompts: the ids of each sequence: the prompt, or an extra prompt, and the ids that it forces.
        answer: the forced ids that belong to the answer.
        grammar: after the prompt and `answer`.
        max_length: tokens of a sequence, at most.
    """

    guide: Guide | None
    prompts: list[list[int]]
    answer: list[int]
    grammar: Grammar
    max_length: int


def plan_prefill(request: Request, vocab: Vocab, codes: int, limit: int) -> Prefill:
    """Plan the prefill of a request.

    Args:
        request: the request.
        vocab: the model's vocabulary.
        codes: number of codes of an image of the usual grid.
        limit: tokens of a sequence that the model can read.

    Raises:
        ValueError: the request does not fit the model, its prompt is no beginning of a document, or its prompts end at
            different grid positions.
    """
    guide = None if request.guide is None or request.guide.off else request.guide
    if isinstance(guide, ContrastiveTopK) and guide.k > len(vocab):
        raise ValueError(f"k of contrastive guidance is {guide.k}, but there are {len(vocab)} ids")
    prompts = [request.prompt, *(request.extra_prompts if guide else ())]
    grammars = [Grammar(vocab, prompt, request.mode, codes, given=request.given) for prompt in prompts]
    forced = [take_forced(grammar) for grammar in grammars]
    missing = [grammar.min_remaining for grammar in grammars]
    if request.mode == "image" and min(missing) < max(missing):
        raise ValueError(f"the prompts lack {missing} ids of their images: all must end at the same code")
    # The room for new ids counts from the end of the prompt. An extra prompt that is longer leaves less of it.
    longest = max(len(prompt) + len(ids) for prompt, ids in zip(prompts, forced, strict=True)) - len(forced[0])
    room = grammars[0].max_codes + 3 if request.mode == "image" else request.max_new_tokens
    grammar = Grammar(vocab, request.prompt, request.mode, codes, min(room, limit - longest), request.given)
    excess = longest + grammar.min_remaining - limit
    if excess > 0:
        raise ValueError(
            f"a prompt of {longest} tokens leaves no room for the {grammar.min_remaining} that must "
            f"follow: the limit is {limit} tokens, so shorten it by {excess}"
        )
    _check_expected(request, grammar, vocab)
    answer = take_forced(grammar)
    read = [[*prompt, *ids] for prompt, ids in zip(prompts, (answer, *forced[1:]), strict=True)]
    return Prefill(guide, read, answer, grammar, min(limit, max(map(len, read)) + grammar.max_remaining))


def _check_expected(request: Request, grammar: Grammar, vocab: Vocab) -> None:
    ids, size = request.expected, grammar.image_size
    if ids is not None and (request.mode != "image" or len(ids) != size or not all(map(vocab.is_code, ids))):
        raise ValueError(f"expected must hold the ids of {size} image codes, in mode 'image'")


class ActiveRequest:
    """A request that was submitted and has not been fetched to its end.

    Args:
        number: of the request, counted by the engine.
        request: the request.
        vocab, codes, limit: as for `plan_prefill`.

    Attributes:
        prompts: what the prefill reads, for each sequence.
        sequences: indices of its sequences in the engine's batch, while it runs.
        answer: the new ids so far.
        num_read: new ids that the model has read.
        failure: the error that ended it.
        max_length: tokens of a sequence, at most.

    Raises:
        ValueError: as `plan_prefill`.
    """

    def __init__(self, number: int, request: Request, vocab: Vocab, codes: int, limit: int) -> None:
        self.number, self.request = number, request
        self.guide, self.prompts, answer, self.grammar, self.max_length = plan_prefill(request, vocab, codes, limit)
        self.uniforms = Uniforms(request.seed)
        self.answer: list[int] = []
        self.unread: list[int] = []  # the end of the answer, which the model has not read
        self.written = Written()  # state of the alphabet
        self.sequences: list[int] = []
        self.num_read = 0
        self.failure: BaseException | None = None
        self._num_fetched = 0
        self._append(answer)
        self.unread.clear()  # the prefill reads them

    @property
    def done(self) -> bool:
        return self.grammar.done

    @property
    def ready(self) -> bool:
        """Whether the next id has to be sampled."""
        return not self.unread and not self.done

    @property
    def expected(self) -> int | None:
        """The id whose logit grows in the next step."""
        ids, position = self.request.expected, self.grammar.position
        return None if ids is None or position is None else ids[position]

    def forbid_letters(self, allowed: Tensor) -> None:  # bool [V], changed in place
        """Forbid the text ids that would leave the request's alphabet."""
        vocab, alphabet = self.grammar.vocab, self.request.alphabet
        if alphabet is not None:
            text = allowed[vocab.first_text : vocab.first_code]
            text[: alphabet.size] &= alphabet.legal(self.written).to(allowed.device)
            text[alphabet.size :] = False

    def take(self, id: int) -> None:
        """Take a sampled id, and the ids that it forces."""
        self._append([id] if self.grammar.advance(id) else [])
        self._append(take_forced(self.grammar))

    def read(self, count: int) -> list[int]:
        """The next ids for the model, in each sequence."""
        ids = self.unread[:count]
        del self.unread[:count]
        self.num_read += len(ids)
        return ids

    def fetch(self) -> list[int]:
        """The ids that are new since the last call."""
        new = self.answer[self._num_fetched :]
        self._num_fetched = len(self.answer)
        return new

    def _append(self, ids: list[int]) -> None:
        self.answer += ids
        self.unread += ids
        vocab, alphabet = self.grammar.vocab, self.request.alphabet
        for id in ids:
            if alphabet is not None and vocab.is_text(id):
                self.written = alphabet.follow(self.written, vocab.ids_to_text(id)) or Written()


def sample_next(
    logits: Tensor, active: Sequence[ActiveRequest], legal: Sequence[Legal], vocab: Vocab, codes: bool = False
) -> list[int]:  # [sequences, V] -> [B]
    """Sample the next id of each request: guidance, grammar, source bias, then sampling.

    Args:
        logits: of the requests' sequences, in their order.
        active: the requests.
        legal: what each request's grammar allows.
        vocab: the vocabulary.
        codes: whether the logits are those of image codes only, all of which are allowed.
    """
    first = vocab.first_code if codes else 0
    logits = logits[:, : len(vocab) - first].float()  # a head may have rows beyond the vocabulary
    allowed = None if codes else legal_mask(legal, vocab).to(logits.device)  # [B, V]
    if allowed is not None:
        for one, mask in zip(active, allowed, strict=True):
            one.forbid_letters(mask)
    scores = _guided(logits, active, legal, allowed)
    biased = [
        (i, id - first, one.request.logit_bias) for i, one in enumerate(active) if (id := one.expected) is not None
    ]
    if biased:
        rows, ids, nats = zip(*biased, strict=True)
        scores[list(rows), list(ids)] += torch.tensor(nats, device=scores.device)
    ids = sample(scores, [one.request.sampling for one in active], [one.uniforms for one in active])
    return to_ints(ids + first)


def _guided(
    logits: Tensor, active: Sequence[ActiveRequest], legal: Sequence[Legal], allowed: Tensor | None
) -> Tensor:  # [sequences, V], bool [B, V] -> [B, V]
    """The scores of each request after guidance, with -inf for ids that are not allowed."""
    if all(one.guide is None for one in active):
        return forbid(logits, allowed)
    groups: dict[tuple[Guide | None, bool, float], list[int]] = {}  # requests that are guided in one call
    for i, one in enumerate(active):
        falling = isinstance(one.guide, ClassifierFree) and one.guide.schedule == "falling"
        progress = one.grammar.image_progress if falling else 0.0
        groups.setdefault((one.guide, legal[i].codes, progress), []).append(i)
    starts = [0]
    for one in active:
        starts.append(starts[-1] + len(one.prompts))
    scores = logits.new_empty(len(active), logits.shape[1])
    for (guide, is_code, progress), members in groups.items():
        rows = [[starts[i] + j for i in members] for j in range(len(active[members[0]].prompts))]
        each = logits[torch.tensor(rows, device=logits.device)]  # [sequences of a request, requests, V]
        mask = None if allowed is None else allowed[members]
        scores[members] = forbid(each[0], mask) if guide is None else guide(each, mask, is_code, progress)
    return scores
