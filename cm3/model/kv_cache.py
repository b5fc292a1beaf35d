"""KV cache for a batch of sequences with different lengths, which join and leave while it runs.

The token at position p of a sequence is at index p, without padding in front. A mask hides what is behind a sequence's
last token. Memory is allocated in advance, and no step moves earlier tokens.

    index      0 1 2 3 4 5 6 7
    sequence 0 a b c d _ _ _ _
    sequence 1 e f g h i j _ _

Shapes: B sequences, G key/value heads, T new tokens, S tokens that attention sees, K head size.
"""

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from cm3.model.config import CM3Config


class KVCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, [sequences, G, length, K]."""

    is_sliding = False

    def __init__(self, cache: "KVCache") -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        _, groups, _, size = key_states.shape
        shape = self.cache.sequences, groups, self.cache.length, size
        self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(shape)  # 0: masked, yet read
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:  # [B, G, T, K] -> [B, G, S, K]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        at, visible = self.cache.at, self.cache.visible
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            kept[at[0], :, at[1]] = new.transpose(1, 2)  # [B, T, G, K]
        if not visible:
            return key_states, value_states
        count = len(key_states)
        return self.keys[:count, :, :visible], self.values[:count, :, :visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.visible or query_length, 0

    def get_seq_length(self) -> int:
        return max(0, self.cache.visible - self.cache.at[1].shape[1])

    def get_max_length(self) -> int:
        return self.cache.length

    def resize(self, sequences: int, length: int) -> None:
        if self.is_initialized:
            assert self.keys is not None
            assert self.values is not None
            resized: list[Tensor] = []
            for old in (self.keys, self.values):
                new = old.new_zeros(sequences, old.shape[1], length, old.shape[3])
                new[: old.shape[0], :, : old.shape[2]] = old
                resized.append(new)
            self.keys, self.values = resized

    def copy(self, to: Tensor, source: Tensor, length: int) -> None:
        assert self.keys is not None
        assert self.values is not None
        for kept in (self.keys, self.values):
            kept[to, :, :length] = kept[source, :, :length]


class KVCache(Cache):
    """Keys and values of all layers. Call `prefill` or `decode` before each forward pass.

    Args:
        config: of the model.
        sequences: how many sequences there is room for.
        length: tokens of a sequence that there is room for.

    Attributes:
        at: where the next keys and values are written: sequences [B, 1] and indices [B, T].
        visible: tokens of the cache that attention sees; 0 for those of the forward pass only.
    """

    def __init__(self, config: CM3Config, sequences: int, length: int) -> None:
        self.sequences, self.length = sequences, length
        self.at: tuple[Tensor, Tensor] = torch.empty(0, 1), torch.empty(0, 1)
        self.visible = 0
        super().__init__(layers=[KVCacheLayer(self) for _ in range(config.num_hidden_layers)])

    def prefill(self, sequences: Tensor, length: int) -> None:  # [B]
        """The next forward pass reads new sequences from their beginning. Padding at their end is overwritten later."""
        self.at, self.visible = (sequences[:, None], torch.arange(length, device=sequences.device)[None]), 0

    def decode(self, positions: Tensor, length: int) -> None:  # [B, T]
        """The next forward pass continues the first B sequences at these positions, and sees their first `length`
        tokens, as far as its mask allows."""
        sequences = torch.arange(len(positions), device=positions.device)
        self.at, self.visible = (sequences[:, None], positions), length

    def resize(self, sequences: int, length: int) -> None:
        """Allocate more memory, and keep what is there."""
        assert sequences >= self.sequences and length >= self.length, "a cache only grows"
        self.sequences, self.length = sequences, length
        for layer in self.kv_layers:
            layer.resize(sequences, length)

    def copy(self, to: Tensor, source: Tensor, length: int) -> None:  # [N], [N]
        """Copy the first `length` tokens of some sequences to others."""
        for layer in self.kv_layers:
            layer.copy(to, source, length)

    @property
    def kv_layers(self) -> list[KVCacheLayer]:
        return [layer for layer in self.layers if isinstance(layer, KVCacheLayer)]
