"""The generation loop: prefill, then decode, for requests of unequal prompts and different jobs in one batch.

It sees ids only. Each request has one lane of the batch, and one or two more for its further prompts if it is guided;
lanes are left-padded to one length, and positions are counted from each lane's first id.

    lane 0  request 0          . . <eos> a cat <break> <image> | c1 c2 c3 ...
    lane 1  request 0  other   . . . <eos> <mask:0> <break> <image> | c1 c2 c3 ...
    lane 2  request 1          <eos> Caption: <mask:0> <break> <image> c1 .. </image> <infill:0> | a dog

Ids that the form or the request fixes are read, not drawn: in the prefill, or later as many at once as every row has
waiting. A request's ids depend on its seed, not on the requests beside it. generate_naive is the oracle: no cache, no
batch, one id after the other.
"""

# torch types some of its functions in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cm3.cache import KVCache
from cm3.grammar import Grammar, Mode, allowed
from cm3.guidance import ContrastiveTopK, Guide
from cm3.options import SamplingConfig
from cm3.sampling import generator_of, sample
from cm3.transformer import CM3ForCausalLM
from cm3.vocab import Vocab


@dataclass(frozen=True)
class Request:
    """One row to generate.

    prompt: ids to write on from.
    mode: what comes: "text", "image" or "document" (grammar.py).
    max_new_tokens: at most so many new ids; a picture that was begun is always finished.
    guide: how the extra prompts count (guidance.py). extra_prompts: in the guide's order, each the same with less of a
    condition; a guide that is off needs none.
    given: for mode "image", the ids of the picture's codes that are fixed, h*w of them row by row; None = draw it.
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

    def __post_init__(self) -> None:
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
    """A request under way: its lanes' prompts, its grammar, its generator, and what it has written.

    Errors: ValueError for a request that does not fit the model, or spells no document."""

    def __init__(self, index: int, request: Request, vocab: Vocab, codes: int, limit: int) -> None:
        self.index, self.request = index, request
        self.generator = generator_of(request.seed)
        self.new: list[int] = []  # the answer so far
        self.unread: list[int] = []  # of the answer, by the model
        self.guide = None if request.guide is None or request.guide.off else request.guide
        self.prompts = [list(prompt) for prompt in (request.prompt, *(request.extra_prompts if self.guide else ()))]
        if isinstance(self.guide, ContrastiveTopK) and self.guide.k > len(vocab):
            raise ValueError(f"k of contrastive guidance is {self.guide.k}, but there are {len(vocab)} ids")
        grammars = [Grammar(vocab, prompt, request.mode, codes, given=request.given) for prompt in self.prompts]
        openings = [take_forced(grammar) for grammar in grammars]  # what stands before the first drawn id in each lane
        needed = [grammar.needed for grammar in grammars]
        if request.mode == "image" and min(needed) < max(needed):
            raise ValueError(f"the prompts lack {needed} ids of their pictures: all must stand at the same code")
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
        self._write(take_forced(self.grammar))
        for prompt, opening in zip(self.prompts, (self.read(len(self.unread)), *openings[1:]), strict=True):
            prompt += opening

    @property
    def done(self) -> bool:
        return self.grammar.done

    def take(self, id: int) -> None:
        """Write a drawn id and all that is forced after it."""
        self._write([id] if self.grammar.advance(id) else [])
        self._write(take_forced(self.grammar))

    def read(self, count: int) -> list[int]:
        """The next ids for the model, in each of the lanes."""
        ids = self.unread[:count]
        del self.unread[:count]
        return ids

    def guided(self, logits: Tensor, legal: Tensor) -> Tensor:  # [lanes, V], bool [V] -> [V]
        """One score for each id, -inf where it is not legal."""
        if self.guide is None:
            return logits[0].masked_fill(~legal, float("-inf"))
        return self.guide(logits, legal, self.grammar.legal().codes)

    def _write(self, ids: list[int]) -> None:
        self.new += ids
        self.unread += ids


def choose(logits: Sequence[Tensor], rows: Sequence[Row]) -> list[int]:
    """The next id of each row, from the logits of its lanes, [1 to 3, V] each: guidance, grammar, sampling."""
    legal = allowed([row.grammar for row in rows]).to(logits[0].device)  # [B, V]
    known = legal.shape[1]  # a head may have rows beyond the vocabulary
    scores = torch.stack(
        [row.guided(x[:, :known].float(), ids) for row, x, ids in zip(rows, logits, legal, strict=True)]
    )
    return sample(scores, [row.request.sampling for row in rows], [row.generator for row in rows]).tolist()


def make_rows(model: CM3ForCausalLM, vocab: Vocab, requests: Sequence[Request], grid: tuple[int, int]) -> list[Row]:
    limit = model.config.max_position_embeddings
    return [Row(i, request, vocab, grid[0] * grid[1], limit) for i, request in enumerate(requests)]


def pad_left(prompts: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:  # -> [L, T], [L, T]
    """The prompts flush right, and a mask with 0 at the padding."""
    length = max(map(len, prompts))
    ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


@torch.inference_mode()
def stream(
    model: CM3ForCausalLM, vocab: Vocab, requests: Sequence[Request], grid: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Each new id as soon as it is known: (number of the request, id). grid: rows and columns of a picture.

    Errors: ValueError for a prompt that is too long, spells no document, or does not lead to what its mode wants."""
    rows = make_rows(model, vocab, requests, grid)
    for row in rows:
        yield from ((row.index, id) for id in row.new)
    rows = [row for row in rows if not row.done]  # those with lanes in the batch
    if not rows:
        return
    device, last = model.device, model.config.max_position_embeddings - 1
    lanes = [prompt for row in rows for prompt in row.prompts]  # L of them
    ids, mask = (x.to(device) for x in pad_left(lanes, vocab.pad))  # [L, T]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # [L, T]
    padded = not bool(mask.all())
    cache = KVCache(model.config, ids.shape[1] + max(row.grammar.longest for row in rows))

    while True:
        out = model(
            input_ids=ids,
            attention_mask=mask if padded else None,
            position_ids=positions,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = out.logits[:, -1].split([len(row.prompts) for row in rows])  # [lanes, V] of each row
        ready = [i for i, row in enumerate(rows) if not row.done and not row.unread]
        if ready:
            drawn = choose([logits[i] for i in ready], [rows[i] for i in ready])
            for row, id in zip([rows[i] for i in ready], drawn, strict=True):
                before = len(row.new)
                row.take(id)
                yield from ((row.index, id) for id in row.new[before:])
        live = [row for row in rows if not row.done]
        if not live:
            return
        if 2 * sum(len(row.prompts) for row in live) <= len(ids):  # finished lanes stay until they are half of all
            keep = torch.tensor([not row.done for row in rows for _ in row.prompts], device=device).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            mask, positions, rows = mask[keep], positions[keep], live
        count = min(len(row.unread) for row in live)  # U, read at once; no row is done before its last id is drawn
        following = [[vocab.pad] * count if row.done else row.read(count) for row in rows]
        ids = torch.tensor([x for row, x in zip(rows, following, strict=True) for _ in row.prompts], device=device)
        steps = torch.arange(1, count + 1, device=device)
        positions = (positions[:, -1:] + steps).clamp(max=last)  # [L, U]; only finished lanes ever pass the last
        if padded:
            mask = torch.cat((mask, mask.new_ones(ids.shape)), dim=-1)  # [L, S]


def generate(
    model: CM3ForCausalLM, vocab: Vocab, requests: Sequence[Request], grid: tuple[int, int]
) -> list[list[int]]:
    """The new ids of each request, in order: without the stop of "text" and of a mask; with <break> and <image> where
    the prompt lacked them, and with </image> and the closing <eos>."""
    new: list[list[int]] = [[] for _ in requests]
    for row, id in stream(model, vocab, requests, grid):
        new[row].append(id)
    return new


@torch.inference_mode()
def generate_naive(
    model: CM3ForCausalLM, vocab: Vocab, requests: Sequence[Request], grid: tuple[int, int]
) -> list[list[int]]:
    """The same, one request after the other, the whole sequence through the model for each id."""
    rows = make_rows(model, vocab, requests, grid)
    for row in rows:
        while not row.done:
            lanes = [
                model(torch.tensor([prompt], device=model.device), use_cache=False).logits[0, -1]
                for prompt in row.prompts
            ]
            row.take(choose([torch.stack(lanes)], [row])[0])
            read = row.read(len(row.unread))
            for prompt in row.prompts:
                prompt += read
    return [row.new for row in rows]
