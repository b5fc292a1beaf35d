"""Converts model folders of Chameleon and Anole to this package's layout, and back to transformers' layout.

    cm3 convert FROM TO [--image-tokenizer vqgan.ckpt]        from transformers' layout, or from Meta's
    cm3 convert OURS TO --to chameleon                        back, for example after training

Tensors are converted one at a time, so that memory holds one of them and its copy. The number of safetensors files
stays the same. Meta's pickles are read by torch with weights_only. The other files of the source are kept in source/,
so that converting back needs nothing else.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cm3.hf.chameleon import EACH, MODEL_TYPE, RELATIVES, Key, Order, config_from, config_to, order_of, weights
from cm3.hf.model_folder import INDEX, WEIGHTS, check_files, read_config, write_checksums, write_folder
from cm3.hf.remote_code import add_code
from cm3.hf.stored_tensors import Stored, reordered, stored, write_shards
from cm3.model.config import CM3Config
from cm3.tokens.encoding import roles
from cm3.tokens.text_tokenizer import FILE, TextTokenizer
from cm3.tokens.tokenizer_json import save_flat
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from tokenizer_image.checkpoint import SafetensorsWeights, open_checkpoint, shards_of
from tokenizer_image.convert import convert as convert_image_tokenizer
from tokenizer_image.tokenizer import embedded as embedded_tokenizers

SOURCE, VOCABULARY = "source", "vocabulary.json"
VQ = "model.vqmodel."
KEPT = ("*.json", "*.jinja", "*.model", "*.txt")  # files of the source that source/ keeps
MAX_GIGABYTES = 200.0  # of a pickle


@dataclass(frozen=True)
class SourceModel:
    """A model of Chameleon's family.

    Attributes:
        config: as in transformers' config.json.
        names: the vocabulary, name to id.
        tokenizer: the tokenizer's file.
        shards: the weights with this package's names, for each file.
        folder: has the files that source/ keeps.
    """

    config: dict[str, Any]
    names: dict[str, int]
    tokenizer: Path
    shards: list[list[Stored]]
    folder: Path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is missing or damaged ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it holds {type(values).__name__}")
    return cast(dict[str, Any], values)


def read_transformers(folder: Path) -> SourceModel:
    """Read a folder in transformers' layout.

    Raises:
        ValueError: the architecture or the vocabulary is not Chameleon's, or weights are missing.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind != MODEL_TYPE:
        why = f", for {RELATIVES[kind]}" if kind in RELATIVES else ""
        raise ValueError(f"{folder} holds a model of type {kind!r}, which cannot be converted{why}: Chameleon's can")
    if not isinstance(config.get("vocabulary_map"), dict):
        raise ValueError(f"{folder}/config.json has no vocabulary_map: Chameleon's has one")
    index = folder / INDEX
    files = shards_of(index) if index.is_file() else [folder / WEIGHTS]
    if missing := [file.name for file in files if not file.is_file()]:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickles[0]} is a pickle: save the model as safetensors" if pickles else ": fetch it again"
        raise ValueError(f"{folder} lacks {', '.join(missing[:3])}{hint}")
    wanted = {key.ours for key in weights(config["num_hidden_layers"], bool(config.get("tie_word_embeddings")))}
    shards: list[list[Stored]] = []
    for file in files:
        tensors = SafetensorsWeights([file])
        shapes, types = tensors.shapes(), tensors.dtypes()
        kept = [name for name in shapes if name in wanted]
        shards.append([stored(name, shapes[name], types[name], tensors) for name in kept])
    if lost := sorted(wanted - {one.name for shard in shards for one in shard}):
        raise ValueError(f"{folder}: the weights lack {', '.join(lost[:3])}")
    tokenizer = folder / FILE
    return SourceModel(config, config["vocabulary_map"], tokenizer, [shard for shard in shards if shard], folder)


def read_meta(folder: Path) -> SourceModel:
    """Read a folder in Meta's layout: params.json and consolidated*.pth, and the tokenizers in tokenizer/ two levels
    up, as Meta and Anole publish them (models/7b), or in the same folder. Raises as `read_transformers`."""
    params = read_json(folder / "params.json")
    if (folder / "consolidate_params.json").is_file():
        params |= read_json(folder / "consolidate_params.json")
    params = {**params, **params.get("model", {})}
    files = sorted(folder.glob("consolidated*.pth"))
    if not files:
        raise ValueError(f"{folder} has params.json, but no consolidated.pth beside it: fetch it again")
    beside = next((path for path in (folder.parents[1] / "tokenizer", folder / "tokenizer") if path.is_dir()), folder)
    tokenizer = beside / "text_tokenizer.json"
    names = read_json(tokenizer).get("model", {}).get("vocab", {})
    parts = [open_checkpoint(file, MAX_GIGABYTES) for file in files]
    keys = weights(params["n_layers"])
    if lost := [key.meta for key in keys if any(key.meta not in part for part in parts)]:
        raise ValueError(f"{files[0]} lacks {', '.join(lost[:3])}: it is no Chameleon of {params['n_layers']} layers")
    heads, groups = params["n_heads"], params.get("n_kv_heads") or params["n_heads"]
    config = {
        "hidden_size": params["dim"],
        "intermediate_size": sum(part["layers.0.feed_forward.w1.weight"].shape[0] for part in parts),
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": params.get("max_seq_len", 4096),
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": params.get("rope_theta", 10_000.0),
        "swin_norm": params.get("swin_norm", False),
    }
    count = {"q": heads, "k": groups}
    shard = [joined(key, parts, count.get(key.heads, 0), params["dim"] // heads) for key in keys]
    return SourceModel(config, names, tokenizer, [shard], beside)


def joined(key: Key, parts: Sequence[Mapping[str, Tensor]], heads: int, size: int) -> Stored:
    """Join a tensor from the parts of a model-parallel checkpoint.

    Args:
        key: the tensor.
        parts: the parts of the checkpoint.
        heads: number of heads.
        size: of a head.
    """

    def read() -> Tensor:
        found = [part[key.meta] for part in parts]
        if key.dim == EACH and not key.heads:
            return found[0] if len(found) == 1 else torch.stack(found).float().mean(0).to(found[0].dtype)
        if key.dim == EACH:  # a norm of heads: each part has one for all its heads
            return torch.stack([halves(one, size) for one in found]).repeat_interleave(heads // len(found), 0)
        whole = found[0] if len(found) == 1 else torch.cat(found, key.dim)
        return halves(whole.view(heads, size, -1), size, 1).reshape(whole.shape) if key.heads else whole

    with torch.device("meta"):  # computes the shape only
        shapes = [torch.empty(part[key.meta].shape) for part in parts]
    if key.dim == EACH:
        shape = (heads, size) if key.heads else tuple(shapes[0].shape)
    else:
        shape = tuple(torch.cat(shapes, key.dim).shape)
    return Stored(key.ours, shape, parts[0][key.meta].dtype, read)


def halves(values: Tensor, size: int, dim: int = 0) -> Tensor:
    """Reorder rotary pairs from Meta's order, (x1, y1, x2, y2), to transformers', (x1, x2, y1, y2)."""
    shape = values.shape
    pairs = values.reshape(*shape[:dim], size // 2, 2, *shape[dim + 1 :])
    return pairs.transpose(dim, dim + 1).reshape(shape)


def text_tokenizer(path: Path, order: Order) -> TextTokenizer:
    """The text tokenizer, with ids from 0.

    Raises:
        ValueError: the file is no tokenizer of this model.
    """
    content = read_json(path)
    words: dict[str, int] | None = content.get("model", {}).get("vocab")
    if not isinstance(words, dict):
        raise ValueError(f"{path} has no table of tokens: Chameleon's tokenizer has one")
    known = {*words, *(token["content"] for token in content.get("added_tokens", ()))}
    if lost := sorted(order.words.keys() - known)[:3]:
        raise ValueError(f"{path} does not belong to the model: it lacks {', '.join(map(repr, lost))}")
    pairs: list[str | list[str]] = content["model"].get("merges", [])
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in pairs]
    model: dict[str, Any] = {
        **content["model"],
        "vocab": {word: order.words[word] for word in words if word in order.words},
        "merges": [pair for pair in merges if {*pair, "".join(pair)} <= order.words.keys()],
    }
    if model.get("unk_token") not in order.words:
        model["unk_token"] = None
    added = [
        {**token, "id": order.words[token["content"]]}
        for token in content.get("added_tokens", ())
        if token["content"] in order.words
    ]
    return TextTokenizer(
        Tokenizer.from_str(json.dumps({**content, "model": model, "added_tokens": added, "post_processor": None}))
    )


def convert(source: Path, out: Path, image_tokenizer: str | Path | None = None) -> None:
    """Convert a model to a folder that CM3.from_pretrained loads.

    Args:
        source: a folder in transformers' or Meta's layout.
        out: the folder to write. If there is an error, nothing is written.
        image_tokenizer: an image tokenizer's name or folder, or a checkpoint that tokenizer_image.convert reads, such
            as Meta's vqgan.ckpt; None for the one in the source, which in transformers' layout has no decoder.

    Raises:
        ValueError: files are missing, damaged or of another model.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is no folder: give the one with config.json, or with params.json")
    inside = sorted(source.glob("models/*/params.json"))
    source = inside[0].parent if len(inside) == 1 else source
    meta = (source / "params.json").is_file()
    model = read_meta(source) if meta else read_transformers(source)
    order = order_of(model.names)
    text = text_tokenizer(model.tokenizer, order)
    if image_tokenizer is None and meta and (model.folder / "vqgan.ckpt").is_file():
        image_tokenizer = model.folder / "vqgan.ckpt"
    with write_folder(out) as fresh:
        image = ready_image_tokenizer(image_tokenizer or source, side_of(model), fresh / "image_tokenizer")
        if image.num_codes != order.num_codes:
            raise ValueError(f"the image tokenizer has {image.num_codes} codes, but the model {order.num_codes}")
        config = config_from(model.config, order, image.grid)
        config.dtype = model.shards[0][0].dtype
        config.image_tokenizer_fingerprint = image.fingerprint()
        config.architectures = ["CM3ForCausalLM"]
        count = max(model.names.values()) + 1
        write_shards(fresh, [[reordered(one, order.rows, count) for one in shard] for shard in model.shards])
        config.save_pretrained(fresh)  # pyright: ignore[reportUnknownMemberType]
        vocab = Vocab.from_config(config)
        save_flat(text, vocab, config.max_position_embeddings, fresh)
        role = roles(vocab)
        generation = {
            "bos_token_id": role["bos_token"],
            "eos_token_id": list(vocab.ends),
            "pad_token_id": role["pad_token"],
        }
        (fresh / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
        keep_files(model.folder, fresh / SOURCE, model.names)
        add_code(fresh, image.size[0])
        write_checksums(fresh)


def ready_image_tokenizer(given: str | Path, side: int | None, out: Path) -> ImageTokenizer:
    """Write the image tokenizer to `out`. `side` is that of its images in pixels, if a checkpoint does not have it.

    Raises:
        ValueError: as tokenizer_image does.
    """
    config = Path(given) / "config.json"
    if str(given) not in embedded_tokenizers() and not (config.is_file() and "n_embed" in read_json(config)):
        return convert_image_tokenizer(given, out, resolution=side)
    tokenizer = ImageTokenizer.from_pretrained(given)
    tokenizer.save_pretrained(out)
    return tokenizer


def side_of(model: SourceModel) -> int | None:
    """Side of the images in pixels, from transformers' configuration or Meta's vqgan.yaml; None if unknown."""
    if "resolution" in model.config.get("vq_config", {}):
        return model.config["vq_config"]["resolution"]
    described = model.folder / "vqgan.yaml"
    found = re.search(r"^\s*resolution:\s*(\d+)", described.read_text(), re.M) if described.is_file() else None
    return int(found[1]) if found else None


def keep_files(folder: Path, out: Path, names: Mapping[str, int]) -> None:
    """Copy the files that converting back needs."""
    out.mkdir()
    (out / VOCABULARY).write_text(json.dumps(names, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    for path in {path for pattern in KEPT for path in folder.glob(pattern)}:
        if path.is_file() and not path.name.endswith(".index.json"):
            shutil.copy2(path, out / path.name)


def convert_back(source: Path, out: Path, like: Path | None = None) -> None:
    """Convert a model to a folder that transformers' ChameleonForConditionalGeneration loads.

    Args:
        source: a folder that `convert` wrote, or a model that was trained from it.
        out: the folder to write.
        like: the folder that `convert` wrote, if `source` is another.

    Raises:
        ValueError: neither folder comes from `convert`.
    """
    check_files(source)
    config: CM3Config = read_config(source)
    kept = (like or source) / SOURCE
    if not (kept / VOCABULARY).is_file():
        raise ValueError(
            f"{like or source} has no {SOURCE}/{VOCABULARY}, which is needed to convert back: if the model was trained "
            "from a converted one, name that with --like"
        )
    names = cast(dict[str, int], read_json(kept / VOCABULARY))
    order = order_of(names, config.num_special_tokens)
    if (order.num_text, order.num_codes) != (config.text_vocab_size, config.image_vocab_size):
        raise ValueError(f"{kept} belongs to another model than {source}: their vocabularies differ")
    back = [-1] * (max(names.values()) + 1)
    for ours, theirs in enumerate(order.rows):
        if theirs >= 0:
            back[theirs] = ours
    image = ImageTokenizer.from_pretrained(source / "image_tokenizer")
    files = shards_of(source / INDEX) if (source / INDEX).is_file() else [source / WEIGHTS]
    shards: list[list[Stored]] = []
    for file in files:
        tensors = SafetensorsWeights([file])
        shapes, types = tensors.shapes(), tensors.dtypes()
        whole = [stored(name, shapes[name], types[name], tensors) for name in shapes]
        shards.append([reordered(one, back, len(order.rows)) for one in whole])
    shards[-1] += encoder_of(image)
    with write_folder(out) as fresh:
        for path in kept.iterdir():
            if path.name not in (VOCABULARY, "config.json", "params.json"):
                shutil.copy2(path, fresh / (FILE if path.name == "text_tokenizer.json" else path.name))
        values = config_to(config, names, vq_config(image), str(shards[0][0].dtype).removeprefix("torch."))
        (fresh / "config.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_shards(fresh, shards)


def encoder_of(image: ImageTokenizer) -> Iterable[Stored]:
    """The image tokenizer's tensors without its decoder, as in transformers' layout."""
    for name, tensor in image.model.state_dict().items():
        if not name.startswith("decoder."):
            value = tensor.detach().cpu()
            yield Stored(VQ + name, tuple(value.shape), value.dtype, lambda value=value: value)


def vq_config(image: ImageTokenizer) -> dict[str, Any]:
    """The image tokenizer's configuration as transformers' ChameleonVQVAEConfig."""
    config = image.model.config
    return {
        "embed_dim": config.embed_dim,
        "num_embeddings": config.n_embed,
        "latent_channels": config.z_channels,
        "resolution": config.resolution,
        "base_channels": config.ch,
        "channel_multiplier": list(config.ch_mult),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": list(config.attn_resolutions) or None,
    }
