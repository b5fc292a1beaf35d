"""What the engine is asked for, and a request under way: its prompts, grammar, random numbers, and what it has written.

Ids that the form or the request fixes are read, not drawn: in the prefill, or later as many at once as every row has
waiting. choose() draws the next id of each of several rows, from the logits of their lanes.
"""

# torch types some of its functions in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cm3.engine.guidance import ClassifierFree, ContrastiveTopK, Guide, forbid
from cm3.engine.options import SamplingConfig, check_bias
from cm3.engine.sampling import Uniforms, sample
from cm3.tokens.alphabet import Alphabet, Written
from cm3.tokens.grammar import Grammar, Legal, Mode, legal_ids
from cm3.tokens.vocab import Vocab


@dataclass(frozen=True)
class Request:
    """One row to generate.

    prompt: ids to write on from.
    mode: what comes: "text", "image" or "document" (tokens/grammar.py).
    max_new_tokens: at most so many new ids; an image that was begun is always finished.
    guide: how the extra prompts count (guidance.py). extra_prompts: in the guide's order, each the same with less of a
    condition; a guide that is off needs none.
    given: for mode "image", the ids of the image's codes that are fixed, h*w of them row by row; None = draw it.
    expected: likewise the ids of codes whose logits grow by logit_bias, each in its own cell, after guidance.
    alphabet: the text that comes has its letters alone.
    seed: of this row's own generator, 0 to 2^63 - 1.
    Errors: ValueError for a value outside its limits, or extra_prompts that do not fit the guide.
    """

    prompt: list[int]
    mode: Mode = "document"
    max_new_tokens: int = 256
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    guide: Guide | None = None
    extra_prompts: Sequence[list[int]] = ()
    given: Sequence[int | None] | None = None
    seed: int = 0
    expected: Sequence[int] | None = None
    logit_bias: float = 0.0
    alphabet: Alphabet | None = None

    def __post_init__(self) -> None:
        check_bias("logit_bias", self.logit_bias)
        if not self.prompt:
            raise ValueError("the prompt has no ids: it begins at least with <eos>")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, but is {self.max_new_tokens}")
        wants = 0 if self.guide is None else self.guide.further
        if len(self.extra_prompts) != wants and not (
            self.guide is not None and self.guide.off and not self.extra_prompts
        ):
            raise ValueError(
                f"{self.guide or 'no guide'} needs {wants} further prompts, but got {len(self.extra_prompts)}"
            )
        if not all(self.extra_prompts):
            raise ValueError("a further prompt has no ids: it begins at least with <eos>")


def take_forced(grammar: Grammar) -> list[int]:
    """The ids that come before the next one to be drawn."""
    ids: list[int] = []
    while not grammar.done and (id := grammar.forced()) is not None:
        if grammar.advance(id):
            ids.append(id)
    return ids


class Row:
    """A request under way.

    number: of the request. lanes: where in the cache each of its prompts stands, once it runs. prompts: of the lanes,
    with all that is read before the first id is drawn.
    Errors: ValueError for a request that does not fit the model, or spells no document."""

    def __init__(self, number: int, request: Request, vocab: Vocab, codes: int, limit: int) -> None:
        self.number, self.request = number, request
        self.uniforms = Uniforms(request.seed)
        self.new: list[int] = []  # the answer so far
        self.unread: list[int] = []  # of the answer, by the model
        self.written = Written()  # of the text
        self.lanes: list[int] = []
        self.seen = 0  # ids that the model has read behind the prompts
        self.fetched = 0  # of the answer
        self.failure: BaseException | None = None
        self.guide = None if request.guide is None or request.guide.off else request.guide
        self.prompts = [list(prompt) for prompt in (request.prompt, *(request.extra_prompts if self.guide else ()))]
        if isinstance(self.guide, ContrastiveTopK) and self.guide.k > len(vocab):
            raise ValueError(f"k of contrastive guidance is {self.guide.k}, but there are {len(vocab)} ids")
        grammars = [Grammar(vocab, prompt, request.mode, codes, given=request.given) for prompt in self.prompts]
        openings = [take_forced(grammar) for grammar in grammars]  # what stands before the first drawn id in each lane
        needed = [grammar.needed for grammar in grammars]
        if request.mode == "image" and min(needed) < max(needed):
            raise ValueError(f"the prompts lack {needed} ids of their images: all must stand at the same code")
        lengths = [len(prompt) + len(opening) for prompt, opening in zip(self.prompts, openings, strict=True)]
        longest = max(lengths) - len(openings[0])  # which the room includes
        room = grammars[0].most + 3 if request.mode == "image" else request.max_new_tokens
        self.grammar = Grammar(vocab, request.prompt, request.mode, codes, min(room, limit - longest), request.given)
        over = longest + self.grammar.needed - limit
        if over > 0:
            raise ValueError(
                f"a prompt of {longest} tokens leaves no room for the {self.grammar.needed} that must "
                f"follow: the limit is {limit} tokens, so shorten it by {over}"
            )
        if request.expected is not None:
            self._check_expected(request.expected, vocab)
        self._write(take_forced(self.grammar))
        opening, self.unread = self.unread, []
        for prompt, read in zip(self.prompts, (opening, *openings[1:]), strict=True):
            prompt += read
        self.longest = min(limit, max(map(len, self.prompts)) + self.grammar.longest)  # tokens of a lane, at most

    @property
    def done(self) -> bool:
        return self.grammar.done

    @property
    def ready(self) -> bool:
        """Whether the next id is to be drawn."""
        return not self.unread and not self.done

    @property
    def expected(self) -> int | None:
        """The id whose logit grows in the next draw."""
        ids, grammar = self.request.expected, self.grammar
        return ids[grammar.cell] if ids is not None and grammar.state == "codes" else None

    def forbid_letters(self, allowed: Tensor) -> None:  # [V]
        """Make what is not of the row's alphabet illegal among the ids of text."""
        vocab, alphabet = self.grammar.vocab, self.request.alphabet
        if alphabet is not None:
            text = allowed[vocab.first_text : vocab.first_code]
            text[: alphabet.size] &= alphabet.legal(self.written).to(allowed.device)
            text[alphabet.size :] = False

    def take(self, id: int) -> None:
        """Write a drawn id and all that is forced after it."""
        self._write([id] if self.grammar.advance(id) else [])
        self._write(take_forced(self.grammar))

    def read(self, count: int) -> list[int]:
        """The next ids for the model, in each of the lanes."""
        ids = self.unread[:count]
        del self.unread[:count]
        self.seen += len(ids)
        return ids

    def fetch(self) -> list[int]:
        """Of the answer what is new since the last call."""
        new = self.new[self.fetched :]
        self.fetched = len(self.new)
        return new

    def _check_expected(self, ids: Sequence[int], vocab: Vocab) -> None:
        if self.request.mode != "image" or len(ids) != self.grammar.size or not all(map(vocab.is_code, ids)):
            raise ValueError(f"expected must hold the ids of {self.grammar.size} image codes, in mode 'image'")

    def _write(self, ids: list[int]) -> None:
        self.new += ids
        self.unread += ids
        vocab, alphabet = self.grammar.vocab, self.request.alphabet
        for id in ids:
            if alphabet is not None and vocab.is_text(id):
                self.written = alphabet.follow(self.written, vocab.ids_to_text(id)) or Written()


def choose(
    logits: Tensor, rows: Sequence[Row], legal: Sequence[Legal], vocab: Vocab, codes: bool = False
) -> list[int]:  # [lanes, V] -> [B]
    """The next id of each row: guidance, grammar, sampling.

    logits: of the rows' lanes, in their order. legal: of each row's grammar. codes: whether the logits are of the image
    codes alone, of which every row may draw any."""
    first = vocab.first_code if codes else 0
    logits = logits[:, : len(vocab) - first].float()  # a head may have rows beyond the vocabulary
    allowed = None if codes else legal_ids(legal, vocab).to(logits.device)  # [B, V]
    if allowed is not None:
        for row, ids_of_row in zip(rows, allowed, strict=True):
            row.forbid_letters(ids_of_row)
    groups: dict[tuple[Guide | None, bool, float], list[int]] = {}  # rows that are guided together
    for i, row in enumerate(rows):
        falls = isinstance(row.guide, ClassifierFree) and row.guide.schedule == "falling"
        groups.setdefault((row.guide, legal[i].codes, row.grammar.drawn if falls else 0.0), []).append(i)
    if all(row.guide is None for row in rows):
        scores = forbid(logits, allowed)
    else:
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + len(row.prompts))
        scores = logits.new_empty(len(rows), logits.shape[1])
        for (guide, draws_code, drawn), members in groups.items():
            lanes = torch.tensor(
                [[starts[i] + j for i in members] for j in range(len(rows[members[0]].prompts))], device=logits.device
            )
            theirs = None if allowed is None else allowed[members]
            each = logits[lanes]  # [lanes of a row, rows, V]
            scores[members] = forbid(each[0], theirs) if guide is None else guide(each, theirs, draws_code, drawn)
    expected = [
        (i, id - first, row.request.logit_bias) for i, row in enumerate(rows) if (id := row.expected) is not None
    ]
    if expected:
        places, ids, nats = zip(*expected, strict=True)
        scores[list(places), list(ids)] += torch.tensor(nats, device=scores.device)
    ids = sample(scores, [row.request.sampling for row in rows], [row.uniforms for row in rows])
    return (ids + first).tolist()
