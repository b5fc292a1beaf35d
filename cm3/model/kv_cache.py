"""Keys and values of several lanes, each as long as it is: what lets rows join and leave a running batch.

A lane's token at position p lies in slot p, so lanes of unequal length stand side by side without padding before them;
what lies behind a lane's last token is masked. Room is taken once and no step moves the past.

    slot   0 1 2 3 4 5 6 7
    lane 0 a b c d _ _ _ _
    lane 1 e f g h i j _ _

Letters: L lanes, G key/value heads, T new tokens, S slots that are looked at, K head size.
"""

# transformers types its caches in part only.
# pyright: reportUnknownMemberType=false

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from cm3.model.config import CM3Config


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, [lanes, G, slots, K]."""

    is_sliding = False

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        _, groups, _, size = key_states.shape
        shape = self.cache.lanes, groups, self.cache.slots, size
        self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(shape)  # 0: masked, yet read
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:  # [L, G, T, K] -> [L, G, S, K]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        at, seen = self.cache.at, self.cache.seen
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            kept[at[0], :, at[1]] = new.transpose(1, 2)  # [L, T, G, K]
        if not seen:
            return key_states, value_states
        lanes = len(key_states)
        return self.keys[:lanes, :, :seen], self.values[:lanes, :, :seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.seen or query_length, 0

    def get_seq_length(self) -> int:
        return max(0, self.cache.seen - self.cache.at[1].shape[1])

    def get_max_length(self) -> int:
        return self.cache.slots

    def resize(self, lanes: int, slots: int) -> None:
        if self.is_initialized:
            assert self.keys is not None
            assert self.values is not None
            grown: list[Tensor] = []
            for old in (self.keys, self.values):
                new = old.new_zeros(lanes, old.shape[1], slots, old.shape[3])
                new[: old.shape[0], :, : old.shape[2]] = old
                grown.append(new)
            self.keys, self.values = grown

    def copy(self, to: Tensor, of: Tensor, slots: int) -> None:
        assert self.keys is not None
        assert self.values is not None
        for kept in (self.keys, self.values):
            kept[to, :, :slots] = kept[of, :, :slots]


class SlotCache(Cache):
    """The cache of a whole model: `lanes` lanes of `slots` tokens. prefill() or decode() comes before each use."""

    def __init__(self, config: CM3Config, lanes: int, slots: int) -> None:
        self.lanes, self.slots = lanes, slots
        self.at: tuple[Tensor, Tensor] = torch.empty(0, 1), torch.empty(0, 1)  # lane [L, 1] and slot [L, T]
        self.seen = 0
        super().__init__(layers=[SlotLayer(self) for _ in range(config.num_hidden_layers)])

    def prefill(self, lanes: Tensor, length: int) -> None:  # [L]
        """Fresh lanes are read from their beginning on: they see themselves alone. What pads a lane at its end is
        overwritten later."""
        self.at, self.seen = (lanes[:, None], torch.arange(length, device=lanes.device)[None]), 0

    def decode(self, positions: Tensor, seen: int) -> None:  # [L, T]
        """The first L lanes go on at these positions; they see their slots before `seen`, as a mask lets them."""
        lanes = torch.arange(len(positions), device=positions.device)
        self.at, self.seen = (lanes[:, None], positions), seen

    def resize(self, lanes: int, slots: int) -> None:
        """More room, with all that is held."""
        assert lanes >= self.lanes and slots >= self.slots, "a cache grows"
        self.lanes, self.slots = lanes, slots
        for layer in self.slot_layers:
            layer.resize(lanes, slots)

    def copy(self, to: Tensor, of: Tensor, slots: int) -> None:  # [N], [N]
        """The first slots of some lanes into others."""
        for layer in self.slot_layers:
            layer.copy(to, of, slots)

    @property
    def slot_layers(self) -> list[SlotLayer]:
        return [layer for layer in self.layers if isinstance(layer, SlotLayer)]
