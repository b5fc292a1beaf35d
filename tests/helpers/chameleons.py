"""Tiny Chameleons with random weights, in transformers' layout and in Meta's, with both tokenizers."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from cm3.hf.chameleon import EACH, weights
from tokenizer_image import VQConfig, VQModel

CODES = 24  # image codes, so that their names have one digit or two
WORDS = ["a red apple", "a blue car beside two cats", "What is this? A picture of a dog.", "تفاحة حمراء"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
VQ = VQConfig(
    resolution=64,
    ch=32,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    z_channels=8,
    embed_dim=8,
    n_embed=CODES,
)


def code_names() -> list[str]:
    """Of the image codes, not in their order."""
    names = ["IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z" for code in range(CODES)]
    return names[::-1]


def build_tokenizer() -> Tokenizer:
    """As Chameleon's: special tokens first, then image codes, reserved tokens, and a byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    reserved = [f"<reserved{n:05}>" for n in (*range(60), 8706, 8707)]
    first = [*SPECIAL, *code_names(), "<racm3:break>", "<eoss>", *reserved]
    trainer = trainers.BpeTrainer(
        vocab_size=400 + len(first),
        special_tokens=[AddedToken(name, special=True) for name in first],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    content = json.loads(tokenizer.to_str())
    # The image codes and some reserved tokens stand in the vocabulary alone.
    kept = {*SPECIAL, "<racm3:break>", "<eoss>", "<reserved08706>", "<reserved08707>"}
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in kept]
    return Tokenizer.from_str(json.dumps(content))


def vocabulary(tokenizer: Tokenizer, placeholder: str = "<reserved08707>") -> dict[str, int]:
    names: dict[str, int] = json.loads(tokenizer.to_str())["model"]["vocab"]
    names = dict(names)
    names[placeholder] = names.pop("<reserved08707>")
    return names


def write_chameleon(
    folder: Path, seed: int = 0, shard: str = "1GB", **overrides: Any
) -> ChameleonForConditionalGeneration:
    """transformers' layout in `folder`/hf, Meta's image tokenizer in `folder`/vqgan.ckpt."""
    tokenizer = build_tokenizer()
    names = vocabulary(tokenizer, "<image>")
    settings: dict[str, Any] = {
        "vocab_size": max(names.values()) + 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2300,
        "bos_token_id": names["<s>"],
        "eos_token_id": names["</s>"],
        "pad_token_id": names["<pad>"],
        "vocabulary_map": names,
        "vq_config": {
            "resolution": VQ.resolution,
            "base_channels": VQ.ch,
            "channel_multiplier": list(VQ.ch_mult),
            "num_res_blocks": VQ.num_res_blocks,
            "embed_dim": VQ.embed_dim,
            "latent_channels": VQ.z_channels,
            "num_embeddings": CODES,
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vq = VQModel(VQ)
        model = tiny(ChameleonConfig(**(settings | overrides)))
    torch.save({"state_dict": vq.state_dict()}, folder / "vqgan.ckpt")
    same = {name: value for name, value in vq.state_dict().items() if not name.startswith("decoder.")}
    model.model.vqmodel.load_state_dict(same)
    model.save_pretrained(folder / "hf", max_shard_size=shard)
    content = json.loads(tokenizer.to_str().replace("<reserved08707>", "<image>"))
    (folder / "hf" / "tokenizer.json").write_text(json.dumps(content))
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return model


def tiny(config: ChameleonConfig) -> ChameleonForConditionalGeneration:
    """A model whose layers all do something."""
    model = ChameleonForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3, mean=1.0 if "norm" in name and "weight" in name else 0.0)
    return model


def halves_back(values: Tensor, size: int, dim: int) -> Tensor:
    """From first halves before second ones to pairs side by side, as Meta has them."""
    shape = values.shape
    split = values.reshape(*shape[:dim], 2, size // 2, *shape[dim + 1 :])
    return split.transpose(dim, dim + 1).reshape(shape)


def write_meta(model: ChameleonForConditionalGeneration, folder: Path, parts: int = 1) -> dict[str, Tensor]:
    """Meta's layout of a model, with the norms of a part's first head for all of its heads. Returns the weights in
    transformers' names, as they must come out."""
    config, source = model.config, model.state_dict()
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    size = config.hidden_size // config.num_attention_heads
    out: list[dict[str, Tensor]] = [{} for _ in range(parts)]
    expected: dict[str, Tensor] = {}
    for key in weights(config.num_hidden_layers):
        value = source[key.ours].clone()
        if key.heads and key.dim == EACH:
            alike = value.view(parts, heads[key.heads] // parts, size)[:, :1]
            expected[key.ours] = alike.expand(-1, heads[key.heads] // parts, -1).reshape(-1, size)
            split = [halves_back(one[0], size, 0) for one in alike]
        elif key.dim == EACH:
            expected[key.ours], split = value, [value] * parts
        else:
            expected[key.ours] = value
            if key.heads:
                value = halves_back(value.view(heads[key.heads], size, -1), size, 1).reshape(value.shape)
            split = list(value.chunk(parts, key.dim))
        for part, one in zip(out, split, strict=True):
            part[key.meta] = one.clone()
    place = folder / "models" / "7b"
    place.mkdir(parents=True)
    for number, part in enumerate(out):
        torch.save(part, place / (f"consolidated.{number:02}.pth" if parts > 1 else "consolidated.pth"))
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "swin_norm": config.swin_norm,
        "max_seq_len": config.max_position_embeddings,
    }
    (place / "params.json").write_text(json.dumps({"model": params, "model_parallel_size": parts}))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "text_tokenizer.json").write_text(build_tokenizer().to_str())
    return expected


def give_image_tokenizer(folder: Path, vqgan: Path) -> None:
    shutil.copy(vqgan, folder / "tokenizer" / "vqgan.ckpt")
