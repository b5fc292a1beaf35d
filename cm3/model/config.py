"""The model's configuration and presets.

One configuration covers two families: `cm3leon-*` as in the paper (learned positions, LayerNorm without parameters,
ReLU, no biases; CM3leon 2.3), and the Chameleon-like family (RMSNorm, RoPE, SwiGLU, QK-norm) of the small presets. The
vocabulary is flat: special ids | text ids | image codes. This module has their numbers, tokens/vocab.py the arithmetic.
"""

from typing import Any, cast

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

NORMS = ("rmsnorm", "layernorm")
ACTIVATIONS = ("swiglu", "gelu", "relu", "relu2")
POSITIONS = ("rope", "learned")
FORMS = ("cm3", "plan", "chameleon")
MIN_SPECIAL_TOKENS = 40  # pad, eos, break, image, /image, 16 masks, 16 infills, bos, end_turn, placeholder
MAX_GRIDS = 24  # besides the usual one: 64 special tokens in all


@strict
class CM3Config(PreTrainedConfig):
    """Configuration of CM3ForCausalLM.

    Attributes:
        hidden_size: width D of the residual stream.
        num_hidden_layers: number of blocks.
        num_attention_heads: number of heads, each of size hidden_size / num_attention_heads.
        num_key_value_heads: heads of keys and values, fewer for grouped-query attention; None for as many as heads.
        intermediate_size: width of the feed-forward layer; None for 4 D (gelu, relu, relu2), or for 8/3 D rounded up to
            a multiple of 64 (swiglu).
        max_position_embeddings: longest sequence, in tokens.
        norm: "rmsnorm" (learned scale) or "layernorm" (no learned parameters).
        norm_eps: epsilon of every norm.
        activation: "swiglu", "gelu", "relu" or "relu2" (squared ReLU).
        position: "rope" or "learned" (absolute).
        rope_theta: base of the rotary frequencies.
        rope_parameters: the same in transformers' form, {"rope_type": "default", "rope_theta": ...}. It takes
            precedence.
        qk_norm: whether queries and keys are normalised, for each head.
        qk_norm_type: "rmsnorm" (one learned scale for all heads) or "layernorm" (weight and bias per head, Chameleon).
        qk_norm_eps: epsilon of these norms; None for norm_eps.
        swin_norm: whether the outputs of attention and feed-forward layers are normalised, instead of their inputs
            (Swin v2; Chameleon 34B, 2.3).
        tie_word_embeddings: whether the output layer shares the input embedding's weights.
        embedding_size: width of the input embedding and of the output layer, with a matrix between each and the
            residual stream (factorised embeddings, ALBERT, Lan et al. 2019, section 3.1); None for hidden_size, without
            matrices.
        init_std: standard deviation of initial weights.
        init_position_std: standard deviation of initial learned positions.
        init_truncation: number of standard deviations at which initial weights are truncated; 0 for no truncation.
        num_special_tokens: size of the first part of the vocabulary.
        text_vocab_size: size of the second part.
        image_vocab_size: size of the third part: number of image codes.
        image_grid: rows and columns of codes in an image, by default.
        image_grids: other grids of images, at most MAX_GRIDS.
        document_form: form of the documents (tokens/encoding.py): "cm3", with masks; "plan", the same, with images that
            are generated from plans (tokens/plan.py); or "chameleon", in turns.
        vocab_size: the sum of the three parts. More are rows without a meaning, as resize_token_embeddings adds them.

    Raises:
        ValueError: a value is outside its limits, or values do not fit together.
    """

    model_type = "cm3"
    keys_to_ignore_at_inference = ["cache"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    max_position_embeddings: int = 512
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    activation: str = "swiglu"
    position: str = "rope"
    rope_theta: float | int = 10_000.0
    rope_parameters: dict[str, Any] | None = None
    qk_norm: bool = True
    qk_norm_type: str = "rmsnorm"
    qk_norm_eps: float | None = None
    swin_norm: bool = False
    tie_word_embeddings: bool = False
    embedding_size: int | None = None
    init_std: float = 0.02
    init_position_std: float = 0.02
    init_truncation: float | int = 0.0
    num_special_tokens: int = 64
    text_vocab_size: int = 4096
    image_vocab_size: int = 2048
    image_grid: tuple[int, ...] | list[int] = (8, 8)
    image_grids: tuple[Any, ...] | list[Any] = ()
    document_form: str = "cm3"
    vocab_size: int | None = None
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.intermediate_size is None:
            wide = 4 * self.hidden_size
            self.intermediate_size = -(-2 * wide // 192) * 64 if self.activation == "swiglu" else wide
        _require(len(self.image_grid) == 2, f"image_grid is rows and columns, but is {self.image_grid}")
        self.image_grid = self.grid  # JSON has a list
        self.image_grids = tuple(tuple(grid) for grid in self.image_grids)
        others = set(self.image_grids)
        _require(
            len(others) == len(self.image_grids) <= MAX_GRIDS
            and self.image_grid not in others
            and all(len(grid) == 2 and all(type(side) is int and side >= 1 for side in grid) for grid in others),
            f"image_grids are other grids than {self.image_grid}, at most {MAX_GRIDS} of rows and columns, but are "
            f"{list(self.image_grids)}",
        )
        rope = {"rope_type": "default", "rope_theta": self.rope_theta} | (self.rope_parameters or {})
        self.rope_parameters, self.rope_theta = rope, cast(float, rope["rope_theta"])
        if (
            self.qk_norm and self.qk_norm_type == "layernorm"
        ):  # one row for each head, which no tensor-parallel plan can shard
            plan = type(self).base_model_tp_plan or {}
            kept = {name: style for name, style in plan.items() if ".self_attn." not in name}
            vars(self)["base_model_tp_plan"] = kept
        if self.vocab_size is None:
            self.vocab_size = self.num_special_tokens + self.text_vocab_size + self.image_vocab_size
        super().__post_init__(**kwargs)  # pyright: ignore[reportUnknownMemberType]
        self._check()

    def _check(self) -> None:
        for name in (
            *(("embedding_size",) if self.embedding_size is not None else ()),
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "max_position_embeddings",
            "text_vocab_size",
            "image_vocab_size",
        ):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, but is {getattr(self, name)}")
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}",
        )
        assert self.num_key_value_heads is not None
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads "
            f"{self.num_attention_heads} must be a multiple of num_key_value_heads {self.num_key_value_heads}",
        )
        _require(
            self.position != "rope" or self.head_dim % 2 == 0,
            f"position 'rope' needs an even head size, but hidden_size / num_attention_heads is {self.head_dim}",
        )
        for name, known in (
            ("norm", NORMS),
            ("qk_norm_type", NORMS),
            ("activation", ACTIVATIONS),
            ("position", POSITIONS),
            ("document_form", FORMS),
        ):
            _require(
                getattr(self, name) in known,
                f"{name} must be one of {', '.join(known)}, but is {getattr(self, name)!r}",
            )
        _require(
            self.num_special_tokens >= MIN_SPECIAL_TOKENS,
            f"num_special_tokens must be at least {MIN_SPECIAL_TOKENS}, but is {self.num_special_tokens}",
        )
        rope = self.rope_parameters or {}
        _require(rope.get("rope_type") == "default", f"rope_type is {rope.get('rope_type')!r}: only 'default' is known")
        needed = MIN_SPECIAL_TOKENS + len(self.image_grids)
        _require(
            self.num_special_tokens >= needed,
            f"{len(self.image_grids)} image_grids need {needed} special tokens, but num_special_tokens is "
            f"{self.num_special_tokens}",
        )
        _require(min(self.image_grid) >= 1, f"image_grid must be positive, but is {self.image_grid}")
        _require(
            self.init_std >= 0 and self.init_position_std >= 0 and self.init_truncation >= 0,
            "init_std, init_position_std and init_truncation must not be negative",
        )
        total = self.num_special_tokens + self.text_vocab_size + self.image_vocab_size
        assert self.vocab_size is not None
        _require(
            self.vocab_size >= total,
            f"vocab_size is {self.vocab_size}, but num_special_tokens + "
            f"text_vocab_size + image_vocab_size is {total}: leave vocab_size out",
        )

    @property
    def grid(self) -> tuple[int, int]:
        """image_grid as rows and columns."""
        rows, columns = self.image_grid
        return rows, columns

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "CM3Config":
        """A preset with some fields replaced.

        Raises:
            ValueError: an unknown name or field.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
        unknown = sorted(set(overrides) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"unknown field {', '.join(unknown)}: CM3Config knows {', '.join(cls.__annotations__)}")
        try:
            return cls(**{**PRESETS[name], **overrides})
        except StrictDataclassError as error:  # a value of the wrong type
            raise ValueError(str(error)) from error


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


_CM3LEON = dict(
    max_position_embeddings=4096,
    norm="layernorm",
    activation="relu",
    position="learned",
    qk_norm=False,
    init_std=0.006,
    init_position_std=0.0002,
    init_truncation=3.0,
    text_vocab_size=56_320,
    image_vocab_size=8192,
    image_grid=(32, 32),
)

# The paper does not state heads, tying and the activation of cm3leon-*. These are OPT's.
PRESETS: dict[str, dict[str, Any]] = {
    "emoji": dict(hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=704),
    # Images of 16 x 16 codes.
    "emoji-256": dict(
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=640,
        max_position_embeddings=1280,
        image_grid=(16, 16),
    ),
    "tiny": dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        text_vocab_size=320,
        image_vocab_size=32,
        image_grid=(2, 2),
    ),
    "cm3leon-350m": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, **_CM3LEON),
    "cm3leon-760m": dict(hidden_size=1536, num_hidden_layers=24, num_attention_heads=16, **_CM3LEON),
    "cm3leon-7b": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, **_CM3LEON),
    "chameleon-7b": dict(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=11_008,
        max_position_embeddings=4096,
        qk_norm_type="layernorm",
        text_vocab_size=57_280,
        image_vocab_size=8192,
        image_grid=(32, 32),
    ),
}
