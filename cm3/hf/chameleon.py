"""Weights, ids and configuration of Chameleon (arXiv 2405.09818; Anole, arXiv 2407.06135) and their names here.

One table of weights serves all directions. Chameleon's ids mix text, image codes and special tokens; here they are
sorted (tokens/vocab.py). The rows of embedding and output layer are reordered. Special tokens that Chameleon lacks get
the rows of its reserved tokens, so that no row is added or lost.

    ours                  pad    eos   bos  image           end_image  end_turn         placeholder
    theirs                <pad>  </s>  <s>  <racm3:break>   <eoss>     <reserved08706>  <image> or <reserved08707>
    an image code         IMGIMG + its digits as letters, A = 0 ... J = 9, + Z
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from cm3.model.config import CM3Config
from cm3.tokens.vocab import Vocab

MODEL_TYPE = "chameleon"
ROWS = ("model.embed_tokens.weight", "lm_head.weight")  # have a row for each id

# Marks a tensor that each part of a model-parallel checkpoint has. Others are divided along a dimension.
EACH = -1


class Key(NamedTuple):
    """A weight.

    Attributes:
        ours: its name in this package and in transformers, with {} for the layer.
        meta: its name in Meta's files.
        dim: the dimension along which the parts of a checkpoint are joined, or EACH.
        heads: "q" or "k" for weights whose order depends on rotary positions.
    """

    ours: str
    meta: str
    dim: int
    heads: str = ""


KEYS = (
    Key("model.embed_tokens.weight", "tok_embeddings.weight", 1),
    Key("model.norm.weight", "norm.weight", EACH),
    Key("lm_head.weight", "output.weight", 0),
    Key("model.layers.{}.input_layernorm.weight", "layers.{}.attention_norm.weight", EACH),
    Key("model.layers.{}.post_attention_layernorm.weight", "layers.{}.ffn_norm.weight", EACH),
    Key("model.layers.{}.self_attn.q_proj.weight", "layers.{}.attention.wq.weight", 0, "q"),
    Key("model.layers.{}.self_attn.k_proj.weight", "layers.{}.attention.wk.weight", 0, "k"),
    Key("model.layers.{}.self_attn.v_proj.weight", "layers.{}.attention.wv.weight", 0),
    Key("model.layers.{}.self_attn.o_proj.weight", "layers.{}.attention.wo.weight", 1),
    Key("model.layers.{}.self_attn.q_norm.weight", "layers.{}.attention.q_normalization.weight", EACH, "q"),
    Key("model.layers.{}.self_attn.q_norm.bias", "layers.{}.attention.q_normalization.bias", EACH, "q"),
    Key("model.layers.{}.self_attn.k_norm.weight", "layers.{}.attention.k_normalization.weight", EACH, "k"),
    Key("model.layers.{}.self_attn.k_norm.bias", "layers.{}.attention.k_normalization.bias", EACH, "k"),
    Key("model.layers.{}.mlp.gate_proj.weight", "layers.{}.feed_forward.w1.weight", 0),
    Key("model.layers.{}.mlp.up_proj.weight", "layers.{}.feed_forward.w3.weight", 0),
    Key("model.layers.{}.mlp.down_proj.weight", "layers.{}.feed_forward.w2.weight", 1),
)

NAMED = {  # special token here: its names in Chameleon, of which the first that exists counts
    "pad": ("<pad>",),
    "eos": ("</s>",),
    "begin": ("<s>",),
    "image": ("<racm3:break>",),
    "end_image": ("<eoss>",),
    "end_turn": ("<reserved08706>",),
    "placeholder": ("<image>", "<reserved08707>"),
}
RESERVED = re.compile(r"<reserved\d+>")
CODE = re.compile(r"IMGIMG([A-J]+)Z")

# Why related models cannot be converted.
RELATIVES = {
    "emu3": "its images have a token at the end of each row and come from a video tokenizer",
    "janus": "its image codes have further layers for input and output, and it reads images with SigLIP",
}


def weights(layers: int, tied: bool = False) -> list[Key]:
    """All weights of a model."""
    found = [
        Key(key.ours.format(i), key.meta.format(i), key.dim, key.heads)
        for key in KEYS
        for i in (range(layers) if "{}" in key.ours else range(1))
    ]
    return [key for key in found if not (tied and key.ours == "lm_head.weight")]


class Order(NamedTuple):
    """The order of ids.

    Attributes:
        rows: for each id here Chameleon's id, or -1.
        num_text: number of text ids.
        num_codes: number of image codes.
        words: text tokens and their ids, from 0.
    """

    rows: list[int]
    num_text: int
    num_codes: int
    words: dict[str, int]


def order_of(names: Mapping[str, int], num_special: int = 64) -> Order:
    """The order of ids for Chameleon's vocabulary.

    Args:
        names: Chameleon's vocabulary, name to id.
        num_special: number of special ids.

    Raises:
        ValueError: the vocabulary lacks Chameleon's special tokens, or its image codes have gaps.
    """
    codes = {number: id for name, id in names.items() if (number := code_of(name)) is not None}
    if not codes or set(codes) != set(range(len(codes))):
        raise ValueError(
            f"not Chameleon's vocabulary: it has {len(codes)} names of image codes (IMGIMG...Z), numbered "
            f"{min(codes, default=0)} to {max(codes, default=0)}"
        )
    special = dict.fromkeys(range(num_special), -1)
    for ours, theirs in NAMED.items():
        found = [names[name] for name in theirs if name in names]
        if not found:
            raise ValueError(f"not Chameleon's vocabulary: it has no {' or '.join(theirs)}")
        special[getattr(Vocab, ours)] = found[0]
    taken = {*codes.values(), *special.values()}
    spare = sorted(id for name, id in names.items() if RESERVED.fullmatch(name) and id not in taken)
    for slot in special:
        if special[slot] == -1 and spare:
            special[slot] = spare.pop(0)
    taken |= set(special.values())
    text = sorted((id, name) for name, id in names.items() if id not in taken)
    rows = [*special.values(), *(id for id, _ in text), *(codes[number] for number in range(len(codes)))]
    return Order(rows, len(text), len(codes), {name: i for i, (_, name) in enumerate(text)})


def code_of(name: str) -> int | None:
    """The image code of a name; None for other names."""
    found = CODE.fullmatch(name)
    return int("".join(str(ord(letter) - ord("A")) for letter in found[1])) if found else None


def config_from(values: Mapping[str, Any], order: Order, grid: tuple[int, int]) -> CM3Config:
    """The configuration from transformers' ChameleonConfig.

    Raises:
        ValueError: values that CM3Config lacks.
    """
    for name, wanted in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if values.get(name, wanted) != wanted:
            raise ValueError(f"{name} is {values[name]!r}, but only {wanted!r} can be converted")
    rope = values.get("rope_parameters") or {"rope_theta": values.get("rope_theta", 10_000.0)}
    scaling = rope.get("rope_type", "default"), values.get("rope_scaling")
    if scaling != ("default", None):
        raise ValueError(f"rotary positions are scaled ({scaling}): only plain ones can be converted")
    return CM3Config(
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=values["num_attention_heads"],
        num_key_value_heads=values.get("num_key_value_heads"),
        max_position_embeddings=values["max_position_embeddings"],
        norm_eps=values.get("rms_norm_eps", 1e-5),
        qk_norm_eps=1e-5,  # fixed in Chameleon's code
        rope_theta=float(rope["rope_theta"]),
        qk_norm_type="layernorm",
        swin_norm=bool(values.get("swin_norm")),
        tie_word_embeddings=bool(values.get("tie_word_embeddings")),
        text_vocab_size=order.num_text,
        image_vocab_size=order.num_codes,
        image_grid=grid,
        document_form="chameleon",
        bos_token_id=Vocab.begin,
    )


def config_to(config: CM3Config, names: Mapping[str, int], vq: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """transformers' config.json.

    Args:
        config: of the model.
        names: Chameleon's vocabulary.
        vq: the image tokenizer's vq_config.
        dtype: of the weights.

    Raises:
        ValueError: Chameleon does not have this architecture.
    """
    for name, wanted in (
        ("norm", "rmsnorm"),
        ("activation", "swiglu"),
        ("position", "rope"),
        ("qk_norm", True),
        ("qk_norm_type", "layernorm"),
    ):
        if getattr(config, name) != wanted:
            raise ValueError(f"{name} is {getattr(config, name)!r}: Chameleon has {wanted!r}")
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "dtype": dtype,
        "vocab_size": max(names.values()) + 1,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "swin_norm": config.swin_norm,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": names["<s>"],
        "eos_token_id": names["</s>"],
        "pad_token_id": names["<pad>"],
        "vocabulary_map": dict(names),
        "vq_config": dict(vq),
    }
