"""A preallocated key/value cache, where transformers expects a Cache.

Room for Tmax tokens is taken once; each call writes its keys and values behind those seen and gets back a view of
all of them, so that no step copies the past.

    slot   0 1 2 3 4 5 6 7          lane 0 is left-padded by two
    lane 0 . . a b c d _ _          S = 6 tokens seen, Tmax = 8
    lane 1 e f g h i j _ _

Letters: B lanes, G key/value heads, T new tokens, S tokens seen, K head size.
"""

# transformers types its caches in part only.
# pyright: reportUnknownMemberType=false

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from cm3.config import CM3Config


class KVLayer(CacheLayerMixin):
    """One layer's keys and values, [B, G, Tmax, K], of which the first `length` are filled."""

    is_sliding = False
    is_croppable = True

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.max_length, self.length = max_length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        lanes, groups, _, size = key_states.shape
        self.keys = key_states.new_empty(lanes, groups, self.max_length, size)
        self.values = torch.empty_like(self.keys)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:  # [B, G, T, K] -> [B, G, S, K]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        start, self.length = self.length, self.length + key_states.shape[2]
        assert self.length <= self.max_length, f"the cache holds {self.max_length} tokens, not {self.length}"
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.max_length

    def reset(self) -> None:
        self.length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; how many is given as a negative number, as everywhere in transformers."""
        if not -self.length <= tokens_to_remove <= 0:
            raise ValueError(f"crop takes 0 to {-self.length} from {self.length} tokens, but got {tokens_to_remove}")
        self.length += tokens_to_remove

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            assert self.keys is not None
            assert self.values is not None
            self.keys, self.values = self.keys[indices], self.values[indices]

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            assert self.keys is not None
            assert self.values is not None
            self.keys = self.keys.repeat_interleave(repeats, dim=0)
            self.values = self.values.repeat_interleave(repeats, dim=0)


class KVCache(Cache):
    """The cache of a whole model. max_length: tokens that each lane can hold, padding included."""

    def __init__(self, config: CM3Config, max_length: int) -> None:
        super().__init__(layers=[KVLayer(max_length) for _ in range(config.num_hidden_layers)])
