"""The generation loop: requests join a running batch, are drawn side by side, and leave it when they are done.

It sees ids only. Each request has one lane of the batch, and one or two more for its further prompts if it is guided;
lanes are of unequal length. Equal prompts are read once.

    lane 0  request 0          <eos> a cat <break> <image> | c1 c2 c3 ...
    lane 1  request 0  other   <eos> <mask:0> <break> <image> | c1 c2 c3 ...
    lane 2  request 1          <eos> Caption: <mask:0> <break> <image> c1 .. </image> <infill:0> | a dog

A request's ids depend on its seed, not on the requests beside it nor on when they came. generate_naive is the oracle:
no cache, no batch, one id after the other.
"""

# torch types some of its functions in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import math
from collections import deque
from collections.abc import Generator, Sequence
from threading import RLock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cm3.engine.request import Request, Row, choose
from cm3.model.finite import first_not_finite
from cm3.model.kv_cache import SlotCache
from cm3.model.linear import Linear, project
from cm3.model.memory import lane_bytes, lanes_that_fit, room
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.grammar import Legal
from cm3.tokens.vocab import Vocab

MOST_LANES = 192  # MAX_IMAGES rows of three
PREFILL_TOKENS = 16384  # read at once, padding included
ANY_MASK = ("sdpa", "eager")  # attention that takes a mask for each of several new ids


class Streams(Protocol):
    """What an engine may have in its place: see Engine.stream."""

    def stream(self, requests: Sequence[Request]) -> Generator[tuple[int, int]]: ...


class Engine:
    """A model at work on a queue of requests.

    submit() takes a request, step() gives each running row its next ids, cancel() forgets one; stream() and generate()
    do all of it for several. Several threads may call it: their requests share the batch, and whoever waits takes the
    steps, or an EngineThread for all.

    max_lanes: rows wait until there are lanes for them, or memory. compile: make one function of a decoding step with
    torch.compile, for any number of lanes: it takes a C++ compiler, and seconds at the first request.
    """

    def __init__(
        self,
        model: CM3ForCausalLM,
        vocab: Vocab,
        grid: tuple[int, int],
        max_lanes: int = MOST_LANES,
        compile: bool = False,
    ) -> None:
        self.model, self.vocab, self.codes, self.max_lanes = model, vocab, grid[0] * grid[1], max_lanes
        self.compiled: Any = torch.compile(model.model, dynamic=True) if compile else None
        self.rows: dict[int, Row] = {}  # by their numbers, until all that they wrote is fetched
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []  # in the order of their lanes
        self.cache: SlotCache | None = None  # while there are running rows
        self.submitted = 0
        self.lock = RLock()
        self.thread: Streams | None = None  # that takes the steps for all (thread.py)

    def submit(self, request: Request) -> int:
        """A number for the request, which joins at the next step. Errors: ValueError for one that is too long, spells
        no document, or does not lead to what its mode wants; the others go on."""
        with self.lock:
            row = Row(self.submitted, request, self.vocab, self.codes, self.model.config.max_position_embeddings)
            if len(row.prompts) > self.max_lanes:
                raise ValueError(f"a request of {len(row.prompts)} lanes, but the engine has {self.max_lanes}")
            self.submitted += 1
            self.rows[row.number] = row
            if not row.done:
                self.waiting.append(row)
            return row.number

    def cancel(self, number: int) -> None:
        """Forget a request, whatever has become of it."""
        with self.lock:
            row = self.rows.pop(number, None)
            if row in self.waiting:
                self.waiting.remove(row)
            elif row in self.running:
                self._keep([other for other in self.running if other is not row])

    def step(self) -> list[tuple[int, int]]:
        """(number of the request, id) for all that is new; none = nothing is left to do.

        Errors: FloatingPointError for a model that gives no numbers, MemoryError where one lane is too large, and what
        torch says of a device; the rows that ran are lost then, those that wait are not."""
        with self.lock:
            new = self.fetch(list(self.rows))
            while not new and (self.running or self.waiting):
                self.advance()
                new = self.fetch(list(self.rows))
            return new

    def stream(self, requests: Sequence[Request]) -> Generator[tuple[int, int]]:
        """Each new id as soon as it is known: (place of the request, id). Who stops listening cancels the rest.

        Errors: as submit, before anything is drawn, and as step."""
        if self.thread is not None:
            yield from self.thread.stream(requests)
            return
        numbers: list[int] = []
        try:
            with self.lock:
                for request in requests:
                    numbers.append(self.submit(request))
            first = numbers[0] if numbers else 0
            while any(number in self.rows for number in numbers):
                with self.lock:
                    new = self.fetch(numbers)
                    if not new:
                        self.advance()
                yield from ((number - first, id) for number, id in new)
        finally:
            for number in numbers:
                self.cancel(number)

    def generate(self, requests: Sequence[Request]) -> list[list[int]]:
        """The new ids of each request, in order: without the stop of "text" and of a mask; with <break> and <image>
        where the prompt lacked them, and with </image> and the closing <eos>."""
        new: list[list[int]] = [[] for _ in requests]
        for place, id in self.stream(requests):
            new[place].append(id)
        return new

    def fetch(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """What these rows wrote since they were asked last."""
        rows = [self.rows[number] for number in numbers if number in self.rows]
        new = [(row.number, id) for row in rows for id in row.fetch()]
        failures = [row.failure for row in rows if row.failure is not None]
        for row in rows:
            if row.done or row.failure is not None:
                del self.rows[row.number]
        if failures:
            raise failures[0]
        return new

    def advance(self) -> None:
        """The next id of all rows that are ready, with those that join."""
        try:
            with torch.inference_mode():
                states = [self._decode()] if self.running else []
                joined = self._join()
                if joined:
                    states.append(self._prefill(joined))
                ready = [row for row in self.running if row.ready]
                if ready:
                    hidden = states[0] if len(states) == 1 else torch.cat(states)  # [L, D], lane by lane
                    lanes = [lane for row in ready for lane in row.lanes]
                    self._draw(hidden if len(lanes) == len(hidden) else hidden[lanes], ready)
                self._keep([row for row in self.running if not row.done])
        except BaseException as error:  # Ctrl-C too
            for row in self.running:
                row.failure = error
            self.running, self.cache = [], None
            if not isinstance(error, Exception):
                raise

    def _decode(self) -> Tensor:  # -> [L, D]
        """Read what the running rows have written: as many ids as each of them has."""
        device = self.model.device
        attention = str(self.model.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]  # its only name
        lengths = [len(prompt) + row.seen for row in self.running for prompt in row.prompts]
        count = min(len(row.unread) for row in self.running) if attention in ANY_MASK else 1
        ids = torch.tensor([x for row in self.running for x in [row.read(count)] * len(row.prompts)], device=device)
        starts = torch.tensor(lengths, device=device)
        positions = starts[:, None] + torch.arange(count, device=device)  # [L, T]
        seen = max(lengths) + count
        assert self.cache is not None
        self.cache.decode(positions, seen)
        slots = torch.arange(seen, device=device)
        if attention not in ANY_MASK:
            mask = (slots <= positions).long()  # [L, S]: with one id for each lane there is no more to say
        elif count == 1 and min(lengths) == max(lengths) and self.compiled is None:  # one form of call for one function
            mask = None
        else:
            mask = (slots <= positions[:, :, None])[:, None]  # [L, 1, T, S]
            if attention == "eager":
                mask = torch.zeros_like(mask, dtype=self.model.dtype).masked_fill(~mask, -torch.inf)
        return self._read(ids, positions, mask, self.compiled)[:, -1]

    def _prefill(self, rows: Sequence[Row]) -> Tensor:  # -> [their lanes, D]
        """Read the prompts of rows that join, each once, and copy what was made of it to the lanes that share it."""
        device = self.model.device
        lanes = [(lane, tuple(prompt)) for row in rows for lane, prompt in zip(row.lanes, row.prompts, strict=True)]
        first: dict[tuple[int, ...], int] = {}  # the lane that reads each
        for lane, prompt in lanes:
            first.setdefault(prompt, lane)
        longest = max(map(len, first))
        ids = torch.tensor([[*prompt, *[self.vocab.pad] * (longest - len(prompt))] for prompt in first], device=device)
        assert self.cache is not None
        self.cache.prefill(torch.tensor(list(first.values()), device=device), longest)
        hidden = self._read(ids, torch.arange(longest, device=device)[None], None)
        ends = torch.tensor([len(prompt) - 1 for prompt in first], device=device)
        last = hidden[torch.arange(len(first), device=device), ends]  # [distinct prompts, D]
        copies = [(lane, first[prompt]) for lane, prompt in lanes if first[prompt] != lane]
        if copies:
            to, of = torch.tensor(copies, device=device).T
            self.cache.copy(to, of, longest)
        order = {prompt: i for i, prompt in enumerate(first)}
        return last[[order[prompt] for _, prompt in lanes]]

    def _read(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, compiled: Any = None
    ) -> Tensor:  # [L, T] -> [L, T, D]
        model = self.model.model if compiled is None else compiled
        return model(
            input_ids=ids, attention_mask=mask, position_ids=positions, cache=self.cache, use_cache=True
        ).last_hidden_state

    def _draw(self, hidden: Tensor, rows: Sequence[Row]) -> None:  # [their lanes, D]
        """The next id of each row. Where all draw an image code, the head is asked for these alone."""
        head, legal = self.model.lm_head, [row.grammar.legal() for row in rows]
        codes = set(legal) == {Legal(codes=True)} and type(head) is Linear and type(head.weight) is nn.Parameter
        logits = project(hidden, head.weight[self.vocab.first_code : len(self.vocab)]) if codes else head(hidden)
        # The sum is ten times as fast as a look at each, and never finite beside one that is not.
        if not math.isfinite(logits.sum(dtype=torch.float32).item()) and not bool(logits.isfinite().all()):
            row = rows[0]
            raise FloatingPointError(first_not_finite(self.model, row.prompts[0] + row.new))
        for row, id in zip(rows, choose(logits, rows, legal, self.vocab, codes), strict=True):
            row.take(id)

    def _join(self) -> list[Row]:
        """Give lanes to rows that wait, in their order, while there are lanes and memory."""
        config, dtype, joined = self.model.config, self.model.dtype, list[Row]()
        lanes = sum(len(row.lanes) for row in self.running)
        slots = 0 if self.cache is None else self.cache.slots
        fits = self.max_lanes
        while self.waiting:
            row = self.waiting[0]
            wanted = max(slots, room(row.longest))
            if self.cache is None or wanted > slots or lanes + len(row.prompts) > self.cache.lanes:  # room is taken
                fits = min(self.max_lanes, lanes_that_fit(config, wanted, dtype, self.model.device))
            longest = max(len(prompt) for other in (*joined, row) for prompt in other.prompts)
            reads = longest * (sum(len(other.prompts) for other in joined) + len(row.prompts))
            if lanes + len(row.prompts) > fits and not (joined or self.running):
                size = lane_bytes(config, wanted, dtype) * len(row.prompts)
                self.waiting.popleft().failure = MemoryError(
                    f"keys and values of {wanted} tokens for {len(row.prompts)} prompts take {size / 1e6:,.0f} MB, "
                    "which are not free: ask for fewer tokens, or load the model with dtype=torch.bfloat16"
                )
                continue
            if lanes + len(row.prompts) > fits or (joined and reads > PREFILL_TOKENS):
                break
            row.lanes = list(range(lanes, lanes + len(row.prompts)))
            lanes, slots = lanes + len(row.prompts), wanted
            joined.append(self.waiting.popleft())
        if joined:
            self.running += joined
            if self.cache is None:
                self.cache = SlotCache(self.model.config, lanes, slots)
            elif lanes > self.cache.lanes or slots > self.cache.slots:
                self.cache.resize(max(lanes, self.cache.lanes), slots)
        return joined

    @torch.inference_mode()
    def _keep(self, rows: list[Row]) -> None:
        """These go on, the other running rows leave: their lanes are closed up."""
        if len(rows) == len(self.running):
            return
        kept = [lane for row in rows for lane in row.lanes]
        moved = [(to, of) for to, of in enumerate(kept) if to != of]
        self.running = rows
        if not rows:
            self.cache = None
        elif moved and self.cache is not None:
            longest = max(len(prompt) + row.seen for row in rows for prompt in row.prompts)
            to, of = torch.tensor(moved, device=self.model.device).T
            self.cache.copy(to, of, longest)
        lane = 0
        for row in rows:
            row.lanes = list(range(lane, lane + len(row.prompts)))
            lane += len(row.prompts)


@torch.inference_mode()
def generate_naive(
    model: CM3ForCausalLM, vocab: Vocab, requests: Sequence[Request], grid: tuple[int, int]
) -> list[list[int]]:
    """As Engine.generate, one request after the other, the whole sequence through the model for each id."""
    limit = model.config.max_position_embeddings
    rows = [Row(i, request, vocab, grid[0] * grid[1], limit) for i, request in enumerate(requests)]
    for row in rows:
        while not row.done:
            lanes = [
                model(torch.tensor([prompt], device=model.device), use_cache=False).logits[0, -1]
                for prompt in row.prompts
            ]
            row.take(choose(torch.stack(lanes), [row], [row.grammar.legal()], vocab)[0])
            read = row.read(len(row.unread))
            for prompt in row.prompts:
                prompt += read
    return [row.new for row in rows]
