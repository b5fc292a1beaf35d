"""The decoder-only transformer, as a transformers model: CM3Model (ids -> hidden), CM3ForCausalLM (ids -> logits).

Pre-norm blocks without biases or dropout. The configuration chooses norm, position, activation and QK-norm, so that one
file covers CM3leon (2.3) and the Chameleon-like family, whose parameter names are Llama's. Output layers (of attention
and feed-forward) are initialised to 0, so that each block starts as the identity.

Shapes: B batch size, T tokens of this call, S tokens that attention sees (cache and this call), D width, H heads,
G key/value heads, K head size, F feed-forward width, V vocabulary, E width of the embeddings (D, if not factorised).
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask  # pyright: ignore[reportUnknownVariableType]
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults  # pyright: ignore[reportUnknownVariableType]
from transformers.utils.output_capturing import capture_outputs  # pyright: ignore[reportUnknownVariableType]

from cm3.model.config import CM3Config
from cm3.model.linear import Linear


class RMSNorm(nn.Module):
    """RMSNorm with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [..., size] -> same
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class PlainLayerNorm(nn.Module):
    """LayerNorm without learnable parameters (CM3leon 2.3)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = size, eps

    def forward(self, x: Tensor) -> Tensor:  # [..., size] -> same
        return F.layer_norm(x, (self.size,), eps=self.eps)


class HeadLayerNorm(nn.Module):
    """LayerNorm with a weight and a bias for each head (Chameleon's QK-norm)."""

    def __init__(self, heads: int, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, size))
        self.bias = nn.Parameter(torch.zeros(heads, size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [B, T, heads, size] -> same
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight + self.bias


class OutputLinear(Linear):
    """A layer that adds to the residual stream, initialised to 0."""


class WidthLinear(Linear):
    """A layer between the widths of embeddings and residual stream, initialised to keep the size of vectors."""


class LearnedPositions(nn.Embedding):
    """Absolute positions."""


class Rotary(nn.Module):
    """Rotary position embedding: cosine and sine of each position's angles, for the two halves of a head."""

    inv_freq: Tensor  # [K/2]

    def __init__(self, config: CM3Config) -> None:
        super().__init__()
        self.size, self.theta = config.head_dim, float(config.rope_theta)
        self.register_buffer("inv_freq", self.frequencies(), persistent=False)

    def frequencies(self) -> Tensor:  # [K/2]
        return self.theta ** (-torch.arange(0, self.size, 2, dtype=torch.float32) / self.size)

    @torch.no_grad()
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        # positions [B or 1, T] -> cos, sin [B or 1, T, 1, K/2]
        angles = (positions[..., None].float() * self.inv_freq.float())[:, :, None]
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [B, T, heads, K] -> same
    """Rotate each pair (x_i, x_{i+K/2}) by its position's angle."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)  # under autocast x is narrower than the embeddings
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention."""

    is_causal = True  # read by the attention functions of transformers

    def __init__(self, config: CM3Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.scaling = config.head_dim, config.head_dim**-0.5
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        assert groups is not None
        self.num_key_value_groups = heads // groups
        self.q_proj = Linear(config.hidden_size, heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, groups * self.head_dim)
        self.v_proj = Linear(config.hidden_size, groups * self.head_dim)
        self.o_proj = OutputLinear(heads * self.head_dim, config.hidden_size)
        self.q_norm, self.k_norm = head_norm(config, heads), head_norm(config, groups)

    def forward(
        self, x: Tensor, mask: Any, rotary: tuple[Tensor, Tensor] | None, cache: Cache | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:  # x [B, T, D] -> [B, T, D], weights
        shape = (*x.shape[:2], -1, self.head_dim)
        q = self.q_norm(self.q_proj(x).view(shape))  # [B, T, H, K]
        k = self.k_norm(self.k_proj(x).view(shape))  # [B, T, G, K]
        v = self.v_proj(x).view(shape)  # [B, T, G, K]
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H or G, T, K]
        if cache is not None:
            k, v = cast(Any, cache).update(k, v, self.layer_idx, kwargs=kwargs)  # [B, G, S, K]
        name = str(self.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]  # its only name
        # transformers searches the source for `ALL_ATTENTION_FUNCTIONS.get_interface(`.
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)  # pyright: ignore
        out, weights = cast(Any, attend)(
            self, q, k, v, mask, dropout=0.0, scaling=self.scaling, **kwargs
        )  # [B, T, H, K]
        return self.o_proj(out.reshape(*x.shape[:2], -1)), weights


def eager_attention(
    module: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Attention in plain operations, which returns the weights too. `mask` is added to the scores, [B, 1, T, S]."""
    k = k.repeat_interleave(module.num_key_value_groups, dim=1)  # [B, H, S, K]
    v = v.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = q @ k.transpose(2, 3) * scaling  # [B, H, T, S]
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(1, 2).contiguous(), weights


def head_norm(config: CM3Config, heads: int) -> nn.Module:
    """The norm of queries or keys."""
    if not config.qk_norm:
        return nn.Identity()
    eps = config.norm_eps if config.qk_norm_eps is None else config.qk_norm_eps
    if config.qk_norm_type == "layernorm":
        return HeadLayerNorm(heads, config.head_dim, eps)
    return RMSNorm(config.head_dim, eps)


def layer_norm(config: CM3Config) -> nn.Module:
    """The norm of the residual stream."""
    kind = RMSNorm if config.norm == "rmsnorm" else PlainLayerNorm
    return kind(config.hidden_size, config.norm_eps)


class GatedMLP(nn.Module):
    """SwiGLU feed-forward layer."""

    def __init__(self, config: CM3Config) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = OutputLinear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, D] -> [B, T, F] -> [B, T, D]
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MLP(nn.Module):
    """Feed-forward layer with GELU, ReLU or squared ReLU."""

    def __init__(self, config: CM3Config) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.activation = config.activation
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = OutputLinear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, D] -> [B, T, F] -> [B, T, D]
        h = self.up_proj(x)
        if self.activation == "gelu":
            return self.down_proj(F.gelu(h))
        return self.down_proj(F.relu(h).square() if self.activation == "relu2" else F.relu(h))


class Block(GradientCheckpointingLayer):
    """Attention and feed-forward layer."""

    def __init__(self, config: CM3Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        self.mlp = GatedMLP(config) if config.activation == "swiglu" else MLP(config)
        self.input_layernorm = layer_norm(config)
        self.post_attention_layernorm = layer_norm(config)
        self.norm_after = config.swin_norm

    def forward(
        self, x: Tensor, mask: Any, rotary: tuple[Tensor, Tensor] | None, cache: Cache | None, **kwargs: Any
    ) -> Tensor:  # [B, T, D] -> [B, T, D]
        if self.norm_after:
            x = x + self.input_layernorm(self.self_attn(x, mask, rotary, cache, **kwargs)[0])
            return x + self.post_attention_layernorm(self.mlp(x))
        x = x + self.self_attn(self.input_layernorm(x), mask, rotary, cache, **kwargs)[0]
        return x + self.mlp(self.post_attention_layernorm(x))


class CM3PreTrainedModel(PreTrainedModel):
    """Initialisation, and what transformers has to know about the models."""

    config: CM3Config  # pyright: ignore[reportIncompatibleVariableOverride]
    config_class = CM3Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs: dict[str, Any] | None = {"hidden_states": Block, "attentions": Attention}

    @property
    def is_gradient_checkpointing(self) -> bool:
        """peft reads it by this name, which transformers has deprecated."""
        return self.is_activation_checkpointing

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise with normal weights, truncated if init_truncation is set, and 0 in output layers (CM3leon 2.3)."""
        std, cut = self.config.init_std, float(self.config.init_truncation)
        if isinstance(module, OutputLinear):
            init.zeros_(module.weight)
        elif isinstance(module, WidthLinear):
            random_(module.weight, module.in_features**-0.5, cut)
        elif isinstance(module, LearnedPositions):
            random_(module.weight, self.config.init_position_std, cut)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            random_(module.weight, std, cut)
        elif isinstance(module, Rotary):
            init.copy_(module.inv_freq, module.frequencies())
        elif isinstance(module, (RMSNorm, HeadLayerNorm)):
            init.ones_(module.weight)
            if isinstance(module, HeadLayerNorm):
                init.zeros_(module.bias)


def random_(weight: Tensor, std: float, cut: float) -> None:
    """Fill with normal numbers, truncated at `cut` standard deviations if it is not 0."""
    if cut:
        init.trunc_normal_(weight, std=std, a=-cut * std, b=cut * std)
    else:
        init.normal_(weight, std=std)


class CM3Model(CM3PreTrainedModel):
    """The transformer without its output layer: ids to hidden states."""

    def __init__(self, config: CM3Config) -> None:
        super().__init__(config)  # pyright: ignore[reportUnknownMemberType]
        assert config.vocab_size is not None
        narrow, wide = config.embedding_size, config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, narrow or wide)
        self.embed_in = WidthLinear(narrow, wide) if narrow else nn.Identity()
        learned = config.position == "learned"
        self.embed_positions = LearnedPositions(config.max_position_embeddings, config.hidden_size) if learned else None
        self.rotary = None if learned else Rotary(config)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = layer_norm(config)
        self.embed_out = WidthLinear(wide, narrow) if narrow else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,  # [B, T]
        attention_mask: Tensor | None = None,  # [B, S], 1 = a token, 0 = padding; or [B, 1, T, S]
        position_ids: Tensor | None = None,  # [B or 1, T]
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,  # [B, T, E], in place of input_ids
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,  # the cache under its old name
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the last norm, [B, T, E].

        Without position_ids, positions continue from the cache, as everywhere in transformers (its generate() passes
        them for padded rows).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_in(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)  # [B, T, D]
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        mask = cast(Any, create_causal_mask)(self.config, x, attention_mask, cache, position_ids)
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = (torch.arange(x.shape[1], device=x.device) + seen)[None]
        if self.embed_positions is not None:
            x = x + self.embed_positions(position_ids)
        rotary = None if self.rotary is None else self.rotary(position_ids)
        for block in self.layers:
            x = block(x, mask, rotary, cache=cache, **kwargs)  # by name: activation checkpointing removes it
        return BaseModelOutputWithPast(last_hidden_state=self.embed_out(self.norm(x)), cache=cache)


class CM3ForCausalLM(CM3PreTrainedModel, GenerationMixin):
    """The language model: ids to logits. For a loss in chunks, call `model.model` and `model.lm_head` apart."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # pyright: ignore[reportAssignmentType]  # as Llama's

    def __init__(self, config: CM3Config) -> None:
        super().__init__(config)  # pyright: ignore[reportUnknownMemberType]
        assert config.vocab_size is not None
        self.model = CM3Model(config)
        self.lm_head = Linear(config.embedding_size or config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,  # [B, T]
        attention_mask: Tensor | None = None,  # [B, S]
        position_ids: Tensor | None = None,  # [B or 1, T]
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,  # [B, T, E]
        labels: Tensor | None = None,  # [B, T], not shifted; -100 = no loss
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Cache | None = None,  # the cache under its old name, which peft and older callers use
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V], of the last logits_to_keep positions if that is not 0; with labels also the mean loss."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.lm_head(hidden)  # [B, T or fewer, V]
        loss = None
        if labels is not None:
            loss = cast(Any, self).loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
