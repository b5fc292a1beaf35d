"""The generation loop: requests join a running batch, are generated side by side, and leave it when they are done.

The engine works on ids only. Each request has one sequence in the batch, and with guidance one or two more for its
extra prompts. Sequences have different lengths. Equal prompts are read once.

    sequence 0  request 0                <eos> a cat <break> <image> | c1 c2 c3 ...
    sequence 1  request 0, extra prompt  <eos> <mask:0> <break> <image> | c1 c2 c3 ...
    sequence 2  request 1                <eos> Caption: <mask:0> <break> <image> c1 .. </image> <infill:0> | a dog

A request's ids depend on its seed, not on the other requests in the batch nor on when it joined. `generate_naive` is
the oracle: no cache, no batch, one id after the other.
"""

import math
from collections import deque
from collections.abc import Generator, Sequence
from threading import RLock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cm3.engine.active import ActiveRequest, sample_next
from cm3.engine.request import Request
from cm3.model.finite import first_not_finite
from cm3.model.kv_cache import KVCache
from cm3.model.linear import Linear, project
from cm3.model.memory import max_sequences_in_memory, padded_length, sequence_bytes
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.grammar import Legal
from cm3.tokens.vocab import Vocab

MAX_SEQUENCES = 192  # MAX_IMAGES requests with three sequences each
PREFILL_TOKENS = 16384  # tokens of one prefill, padding included
ANY_MASK = ("sdpa", "eager")  # attention that takes a mask for each of several new ids


class Streams(Protocol):
    """What may serve an engine's `stream` in its place."""

    def stream(self, requests: Sequence[Request]) -> Generator[tuple[int, int]]: ...


class Engine:
    """A model and its queue of requests.

    `stream` and `generate` do everything for several requests. They use `submit`, which queues a request, `step`, which
    generates the next ids of every running request, and `cancel`. Several threads may call them: their requests share
    the batch, and the thread that waits runs the steps, or an EngineThread for all.

    Args:
        model: the language model.
        vocab: its vocabulary.
        grid: rows and columns of an image.
        max_sequences: size of the batch. Requests wait until there is room in the batch and in memory.
        compile: compile a decoding step with torch.compile, for any batch size. It needs a C++ compiler, and takes
            seconds at the first request.

    Attributes:
        active: by number, the requests that were submitted and not fetched to their end.
        waiting: those of them that wait.
        running: those of them that are in the batch, in the order of their sequences.
        cache: keys and values of the batch; None while nothing runs.
        thread: serves `stream`, if there is one (thread.py).
    """

    def __init__(
        self,
        model: CM3ForCausalLM,
        vocab: Vocab,
        grid: tuple[int, int],
        max_sequences: int = MAX_SEQUENCES,
        compile: bool = False,
    ) -> None:
        self.model, self.vocab, self.codes, self.max_sequences = model, vocab, grid[0] * grid[1], max_sequences
        self.compiled: Any = None
        if compile:
            self.compiled = torch.compile(model.model, dynamic=True)  # pyright: ignore[reportUnknownMemberType]
        self.active: dict[int, ActiveRequest] = {}
        self.waiting: deque[ActiveRequest] = deque()
        self.running: list[ActiveRequest] = []
        self.cache: KVCache | None = None
        self.submitted = 0
        self.lock = RLock()
        self.thread: Streams | None = None

    def submit(self, request: Request) -> int:
        """Queue a request and return its number. It joins the batch at the next step.

        Raises:
            ValueError: the request is too long, its prompt is no beginning of a document, or cannot be continued in its
                mode. Other requests go on.
        """
        with self.lock:
            limit = self.model.config.max_position_embeddings
            one = ActiveRequest(self.submitted, request, self.vocab, self.codes, limit)
            if len(one.prompts) > self.max_sequences:
                raise ValueError(
                    f"a request of {len(one.prompts)} sequences, but the engine's batch has {self.max_sequences}"
                )
            self.submitted += 1
            self.active[one.number] = one
            if not one.done:
                self.waiting.append(one)
            return one.number

    def cancel(self, number: int) -> None:
        """Remove a request, if it is there."""
        with self.lock:
            one = self.active.pop(number, None)
            if one in self.waiting:
                self.waiting.remove(one)
            elif one in self.running:
                self._keep([other for other in self.running if other is not one])

    def step(self) -> list[tuple[int, int]]:
        """Generate until there are new ids.

        Returns:
            (number of the request, id) for each new id. Empty if nothing is left to do.

        Raises:
            FloatingPointError: the model gives logits that are not finite.
            MemoryError: one request is too large for the memory.
            RuntimeError: what torch reports of a device. The running requests are lost then; the waiting ones are not.
        """
        with self.lock:
            new = self.fetch(list(self.active))
            while not new and (self.running or self.waiting):
                self.advance()
                new = self.fetch(list(self.active))
            return new

    def stream(self, requests: Sequence[Request]) -> Generator[tuple[int, int]]:
        """Yield each new id as soon as it is there, as (index of the request, id). Closing the generator cancels what
        is left.

        Raises:
            ValueError: as `submit`, before anything is generated.
            FloatingPointError, MemoryError, RuntimeError: as `step`.
        """
        if self.thread is not None:
            yield from self.thread.stream(requests)
            return
        numbers: list[int] = []
        try:
            with self.lock:
                for request in requests:
                    numbers.append(self.submit(request))
            first = numbers[0] if numbers else 0
            while any(number in self.active for number in numbers):
                with self.lock:
                    new = self.fetch(numbers)
                    if not new:
                        self.advance()
                yield from ((number - first, id) for number, id in new)
        finally:
            for number in numbers:
                self.cancel(number)

    def generate(self, requests: Sequence[Request]) -> list[list[int]]:
        """The new ids of each request: with <break> and <image> where the prompt lacked them, and with </image> and the
        closing <eos>; without the id that ends mode "text" or the span of a mask."""
        new: list[list[int]] = [[] for _ in requests]
        for index, id in self.stream(requests):
            new[index].append(id)
        return new

    def fetch(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """The ids of these requests that are new since the last call. Requests that have ended are removed, and the
        error of one that failed is raised."""
        requests = [self.active[number] for number in numbers if number in self.active]
        new = [(one.number, id) for one in requests for id in one.fetch()]
        failures = [one.failure for one in requests if one.failure is not None]
        for one in requests:
            if one.done or one.failure is not None:
                del self.active[one.number]
        if failures:
            raise failures[0]
        return new

    def advance(self) -> None:
        """Sample the next id of every request that is ready, after a decode of the running and a prefill of the joining
        requests."""
        try:
            with torch.inference_mode():
                states = [self._decode()] if self.running else []
                joined = self._join()
                if joined:
                    states.append(self._prefill(joined))
                ready = [one for one in self.running if one.ready]
                if ready:
                    hidden = states[0] if len(states) == 1 else torch.cat(states)  # [sequences, D]
                    sequences = [i for one in ready for i in one.sequences]
                    self._sample(hidden if len(sequences) == len(hidden) else hidden[sequences], ready)
                self._keep([one for one in self.running if not one.done])
        except BaseException as error:  # Ctrl-C too
            for one in self.running:
                one.failure = error
            self.running, self.cache = [], None
            if not isinstance(error, Exception):
                raise

    def _decode(self) -> Tensor:  # -> [B, D] of B sequences
        """Read as many new ids as every running request has."""
        device = self.model.device
        attention = str(self.model.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]  # its only name
        lengths = [len(prompt) + one.num_read for one in self.running for prompt in one.prompts]
        count = min(len(one.unread) for one in self.running) if attention in ANY_MASK else 1
        ids = torch.tensor([x for one in self.running for x in [one.read(count)] * len(one.prompts)], device=device)
        starts = torch.tensor(lengths, device=device)
        positions = starts[:, None] + torch.arange(count, device=device)  # [B, T]
        length = max(lengths) + count
        assert self.cache is not None
        self.cache.decode(positions, length)
        keys = torch.arange(length, device=device)
        if attention not in ANY_MASK:
            mask = (keys <= positions).long()  # [B, S]: enough for one id of each sequence
        elif count == 1 and min(lengths) == max(lengths) and self.compiled is None:  # compiled: always the same form
            mask = None
        else:
            mask = (keys <= positions[:, :, None])[:, None]  # [B, 1, T, S]
            if attention == "eager":
                mask = torch.zeros_like(mask, dtype=self.model.dtype).masked_fill(~mask, -torch.inf)
        return self._forward(ids, positions, mask, self.compiled)[:, -1]

    def _prefill(self, requests: Sequence[ActiveRequest]) -> Tensor:  # -> [B, D] of their B sequences
        """Read the prompts of requests that join. Equal prompts are read once, and their keys and values copied."""
        device = self.model.device
        prompts = [(i, tuple(prompt)) for one in requests for i, prompt in zip(one.sequences, one.prompts, strict=True)]
        first: dict[tuple[int, ...], int] = {}  # the sequence that reads each prompt
        for i, prompt in prompts:
            first.setdefault(prompt, i)
        longest = max(map(len, first))
        ids = torch.tensor([[*prompt, *[self.vocab.pad] * (longest - len(prompt))] for prompt in first], device=device)
        assert self.cache is not None
        self.cache.prefill(torch.tensor(list(first.values()), device=device), longest)
        hidden = self._forward(ids, torch.arange(longest, device=device)[None], None)
        ends = torch.tensor([len(prompt) - 1 for prompt in first], device=device)
        last = hidden[torch.arange(len(first), device=device), ends]  # [distinct prompts, D]
        copies = [(i, first[prompt]) for i, prompt in prompts if first[prompt] != i]
        if copies:
            to, source = torch.tensor(copies, device=device).T
            self.cache.copy(to, source, longest)
        order = {prompt: i for i, prompt in enumerate(first)}
        return last[[order[prompt] for _, prompt in prompts]]

    def _forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, compiled: Any = None
    ) -> Tensor:  # [B, T] -> [B, T, D]
        model = self.model.model if compiled is None else compiled
        return model(
            input_ids=ids, attention_mask=mask, position_ids=positions, cache=self.cache, use_cache=True
        ).last_hidden_state

    def _sample(self, hidden: Tensor, requests: Sequence[ActiveRequest]) -> None:  # [their sequences, D]
        """Sample the next id of each request. If all need an image code, only the logits of codes are computed."""
        head, legal = self.model.lm_head, [one.grammar.legal() for one in requests]
        codes = set(legal) == {Legal(codes=True)} and type(head) is Linear and type(head.weight) is nn.Parameter
        logits = project(hidden, head.weight[self.vocab.first_code : len(self.vocab)]) if codes else head(hidden)
        # The sum is ten times as fast as a test of each logit, and never finite if one of them is not.
        if not math.isfinite(logits.sum(dtype=torch.float32).item()) and not bool(logits.isfinite().all()):
            raise FloatingPointError(first_not_finite(self.model, requests[0].prompts[0] + requests[0].answer))
        for one, id in zip(requests, sample_next(logits, requests, legal, self.vocab, codes), strict=True):
            one.take(id)

    def _join(self) -> list[ActiveRequest]:
        """Move waiting requests into the batch, in their order, while there is room in the batch and in memory."""
        config, dtype, joined = self.model.config, self.model.dtype, list[ActiveRequest]()
        sequences = sum(len(one.sequences) for one in self.running)
        length = 0 if self.cache is None else self.cache.length
        fit = self.max_sequences
        while self.waiting:
            one = self.waiting[0]
            count, new_length = len(one.prompts), max(length, padded_length(one.max_length))
            if self.cache is None or new_length > length or sequences + count > self.cache.sequences:  # memory is taken
                fit = min(self.max_sequences, max_sequences_in_memory(config, new_length, dtype, self.model.device))
            longest = max(len(prompt) for other in (*joined, one) for prompt in other.prompts)
            tokens = longest * (sum(len(other.prompts) for other in joined) + count)
            if sequences + count > fit and not (joined or self.running):
                size = sequence_bytes(config, new_length, dtype) * count
                self.waiting.popleft().failure = MemoryError(
                    f"keys and values of {new_length} tokens for {count} prompts take {size / 1e6:,.0f} MB, "
                    "which are not free: ask for fewer tokens, or load the model with dtype=torch.bfloat16"
                )
                continue
            if sequences + count > fit or (joined and tokens > PREFILL_TOKENS):
                break
            one.sequences = list(range(sequences, sequences + count))
            sequences, length = sequences + count, new_length
            joined.append(self.waiting.popleft())
        if joined:
            self.running += joined
            if self.cache is None:
                self.cache = KVCache(self.model.config, sequences, length)
            elif sequences > self.cache.sequences or length > self.cache.length:
                self.cache.resize(max(sequences, self.cache.sequences), length)
        return joined

    @torch.inference_mode()
    def _keep(self, requests: list[ActiveRequest]) -> None:
        """Remove all other running requests from the batch, and close the gaps that their sequences leave."""
        if len(requests) == len(self.running):
            return
        kept = [i for one in requests for i in one.sequences]
        moved = [(to, source) for to, source in enumerate(kept) if to != source]
        self.running = requests
        if not requests:
            self.cache = None
        elif moved and self.cache is not None:
            longest = max(len(prompt) + one.num_read for one in requests for prompt in one.prompts)
            to, source = torch.tensor(moved, device=self.model.device).T
            self.cache.copy(to, source, longest)
        start = 0
        for one in requests:
            one.sequences = list(range(start, start + len(one.prompts)))
            start += len(one.prompts)


@torch.inference_mode()
def generate_naive(
    model: CM3ForCausalLM, vocab: Vocab, requests: Sequence[Request], grid: tuple[int, int]
) -> list[list[int]]:
    """The same ids as Engine.generate, without cache and batch: the whole sequence goes through the model for each
    id."""
    limit = model.config.max_position_embeddings
    active = [ActiveRequest(i, request, vocab, grid[0] * grid[1], limit) for i, request in enumerate(requests)]
    for one in active:
        while not one.done:
            logits = [
                model(torch.tensor([prompt], device=model.device), use_cache=False).logits[0, -1]
                for prompt in one.prompts
            ]
            one.take(sample_next(torch.stack(logits), [one], [one.grammar.legal()], vocab)[0])
            new = one.read(len(one.unread))
            for prompt in one.prompts:
                prompt += new
    return [one.answer for one in active]
