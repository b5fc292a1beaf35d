"""The generation loop: prefill, then decode, for requests of unequal prompts and different jobs in one batch.

It sees ids only. Each request has one lane of the batch, and a second one for its unconditional prompt if it is guided;
lanes are left-padded to one length, and positions are counted from each lane's first id.

    lane 0  request 0  cond    . . <eos> a cat <break> <image> | c1 c2 c3 ...
    lane 1  request 0  uncond  . . . <eos> <mask:0> <break> <image> | c1 c2 c3 ...
    lane 2  request 1          <eos> Caption: <mask:0> <break> <image> c1 .. </image> <infill:0> | a dog

A request's ids depend on its seed, not on the requests beside it. generate_naive is the oracle: no cache, no batch.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cm3.cache import KVCache
from cm3.grammar import Grammar, Mode, allowed
from cm3.guidance import classifier_free
from cm3.sampling import SamplingConfig, sample
from cm3.transformer import CM3ForCausalLM
from cm3.vocab import Vocab


@dataclass(frozen=True)
class Request:
    """One row to generate.

    prompt: ids to write on from. uncond: the same without its condition, for guidance.
    mode: what comes: "text", "image" or "document" (grammar.py).
    max_new_tokens: at most so many new ids; a picture that was begun is always finished.
    guidance: scale of classifier-free guidance; 1 = off. seed: of this row's own generator.
    """

    prompt: list[int]
    uncond: list[int] | None = None
    mode: Mode = "document"
    max_new_tokens: int = 256
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("the prompt has no ids: it begins at least with <eos>")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, but is {self.max_new_tokens}")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance must be 0 or more (1 = off), but is {self.guidance}")
        if self.guidance != 1 and self.uncond is None:
            raise ValueError("guidance needs an unconditional prompt")

    @property
    def guided(self) -> bool:
        return self.guidance != 1


class Row:
    """A request under way: its lanes' prompts, its grammar, its generator, and what it has written."""

    def __init__(self, index: int, request: Request, vocab: Vocab, codes: int, limit: int) -> None:
        self.index, self.request = index, request
        self.generator = torch.Generator().manual_seed(request.seed)
        self.new: list[int] = []  # the answer so far
        self.prompts = [list(request.prompt)]  # of its lanes
        if request.guided and request.uncond is not None:
            self.prompts.append(list(request.uncond))
        longest = max(map(len, self.prompts))
        room = codes + 3 if request.mode == "image" else request.max_new_tokens
        self.grammar = Grammar(vocab, request.prompt, request.mode, codes, min(room, limit - longest))
        over = longest + self.grammar.needed - limit
        if over > 0:
            raise ValueError(f"a prompt of {longest} tokens leaves no room for the {self.grammar.needed} that must "
                             f"follow: the limit is {limit} tokens, so shorten it by {over}")
        self.prompts[0] += self.take_forced()
        for prompt in self.prompts[1:]:  # what the form forces stands before the first drawn id in every lane
            follower = Grammar(vocab, prompt, request.mode, codes)
            while not follower.done and (id := follower.forced()) is not None:
                follower.advance(id)
                prompt.append(id)

    @property
    def done(self) -> bool:
        return self.grammar.done

    def take(self, id: int) -> list[int]:
        """Write a drawn id and all that the form forces after it; returns what the model has to read."""
        return ([id] if self._write(id) else []) + self.take_forced()

    def take_forced(self) -> list[int]:
        taken = []
        while not self.done and (id := self.grammar.forced()) is not None:
            if self._write(id):
                taken.append(id)
        return taken

    def _write(self, id: int) -> bool:
        belongs = self.grammar.advance(id)
        if belongs:
            self.new.append(id)
        return belongs


def choose(logits: Sequence[Tensor], rows: Sequence[Row]) -> list[int]:
    """The next id of each row, from the logits of its lanes, [1 or 2, V] each: guidance, grammar, sampling."""
    guided = [classifier_free(x[0], x[1], row.request.guidance) if row.request.guided else x[0]
              for x, row in zip(logits, rows, strict=True)]
    stacked = torch.stack(guided).float()  # [B, V]
    legal = allowed([row.grammar for row in rows]).to(stacked.device)  # [B, V]
    stacked = stacked.masked_fill(~legal, float("-inf"))
    return sample(stacked, [row.request.sampling for row in rows], [row.generator for row in rows]).tolist()


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
def stream(model: CM3ForCausalLM, vocab: Vocab, requests: Sequence[Request],
           grid: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Each new id as soon as it is known: (number of the request, id). grid: rows and columns of a picture.

    Errors: ValueError for a prompt that is too long, spells no document, or does not lead to what its mode wants."""
    rows = make_rows(model, vocab, requests, grid)
    for row in rows:
        yield from ((row.index, id) for id in row.new)
    rows = [row for row in rows if not row.done]
    if not rows:
        return
    device = model.device
    lanes = [(row, prompt) for row in rows for prompt in row.prompts]  # L of them
    ids, mask = (x.to(device) for x in pad_left([prompt for _, prompt in lanes], vocab.pad))  # [L, T]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # [L, T]
    padded = not bool(mask.all())
    longest = max(row.grammar.longest for row in rows)
    cache = KVCache(model.config, ids.shape[1] + longest)
    owners = [row for row, _ in lanes]
    queues: dict[int, deque[int]] = {row.index: deque() for row in rows}  # ids written, not yet read by the model

    while True:
        out = model(input_ids=ids, attention_mask=mask if padded else None, position_ids=positions,
                    past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1]  # [L, V]
        ready = [row for row in rows if not row.done and not queues[row.index]]
        if ready:
            mine = [logits[[i for i, owner in enumerate(owners) if owner is row]] for row in ready]
            for row, id in zip(ready, choose(mine, ready), strict=True):
                before = len(row.new)
                queues[row.index].extend(row.take(id))
                yield from ((row.index, id) for id in row.new[before:])
        rows = [row for row in rows if not row.done]
        if not rows:
            return
        keep = [i for i, owner in enumerate(owners) if not owner.done]
        if 2 * len(keep) <= len(owners):  # finished lanes are carried along until half of them are
            chosen = torch.tensor(keep, device=device)
            cache.batch_select_indices(chosen)
            owners = [owners[i] for i in keep]
            mask, positions = mask[chosen], positions[chosen]
        following = {row.index: queues[row.index].popleft() for row in rows}
        ids = torch.tensor([[following.get(owner.index, vocab.pad)] for owner in owners], device=device)  # [L, 1]
        positions = positions[:, -1:] + 1  # [L, 1]
        if padded:
            mask = torch.cat((mask, mask.new_ones(len(owners), 1)), dim=-1)  # [L, S]


def generate(model: CM3ForCausalLM, vocab: Vocab, requests: Sequence[Request],
             grid: tuple[int, int]) -> list[list[int]]:
    """The new ids of each request, in order: without the stop of "text" and of a mask; with <break> and <image> where
    the prompt lacked them, and with </image> and the closing <eos>."""
    new: list[list[int]] = [[] for _ in requests]
    for row, id in stream(model, vocab, requests, grid):
        new[row].append(id)
    return new


@torch.inference_mode()
def generate_naive(model: CM3ForCausalLM, vocab: Vocab, requests: Sequence[Request],
                   grid: tuple[int, int]) -> list[list[int]]:
    """The same, one request after the other, the whole sequence through the model for each id."""
    rows = make_rows(model, vocab, requests, grid)
    for row in rows:
        while not row.done:
            lanes = [model(torch.tensor([prompt], device=model.device), use_cache=False).logits[0, -1]
                     for prompt in row.prompts]
            read = row.take(choose([torch.stack(lanes)], [row])[0])
            for prompt in row.prompts:
                prompt += read
    return [row.new for row in rows]
