"""Chameleon's and Anole's model folders -> ours, and back to transformers' layout.

    cm3 convert FROM TO [--image-tokenizer vqgan.ckpt]        from transformers' layout, or from Meta's own
    cm3 convert OURS TO --to chameleon                        what came from there, after training

A tensor at a time goes from file to file: no more than one of them and its copy is in memory. safetensors stay as they
are divided; of Meta's pickles each is read by torch with weights_only. What a folder of theirs holds beside the weights
is kept in source/, so that the way back needs nothing else.
"""

# torch, safetensors and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cm3.hf.chameleon import EACH, MODEL_TYPE, RELATIVES, ROWS, Key, Order, config_from, config_to, order_of, weights
from cm3.hf.model_folder import INDEX, WEIGHTS, check_files, read_config, write_checksums, write_folder
from cm3.hf.remote_code import carry
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
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
VQ = "model.vqmodel."
BESIDE = ("*.json", "*.jinja", "*.model", "*.txt")  # of a folder, what source/ keeps
MAX_GIGABYTES = 200.0  # of a pickle


@dataclass(frozen=True)
class Stored:
    """A tensor to be written. shape, dtype: known before it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def write_safetensors(path: Path, tensors: Sequence[Stored]) -> None:
    """The file, a tensor at a time. (safetensors' own writer wants all of them in memory; its format is a length, a
    table and the bytes: huggingface.co/docs/safetensors.) Errors: ValueError for a type that models are not kept in."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in tensors:
        if one.dtype not in TYPES:
            raise ValueError(f"{one.name} is of type {str(one.dtype).removeprefix('torch.')}: give fp32, fp16 or bf16")
        start, end = end, end + torch.Size(one.shape).numel() * one.dtype.itemsize
        table[one.name] = {"dtype": TYPES[one.dtype], "shape": list(one.shape), "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for one in tensors:
            tensor = one.read().contiguous()
            assert (tensor.shape, tensor.dtype) == (one.shape, one.dtype), f"{one.name}: {tensor.shape}, {tensor.dtype}"
            file.flush()
            tensor.flatten().view(torch.uint8).numpy().tofile(file)


def write_shards(folder: Path, shards: Sequence[Sequence[Stored]]) -> None:
    """model.safetensors, or several files and their index."""
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS, shards[0])
        return
    places: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, tensors)
        places |= {one.name: name for one in tensors}
    size = sum(torch.Size(one.shape).numel() * one.dtype.itemsize for tensors in shards for one in tensors)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


@dataclass(frozen=True)
class Model:
    """A model of theirs. config: as transformers' config.json has it. names: the vocabulary. tokenizer: its file.
    shards: the weights, in our names, as they are divided. beside: the folder with what source/ keeps."""

    config: dict[str, Any]
    names: dict[str, int]
    tokenizer: Path
    shards: list[list[Stored]]
    beside: Path


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is missing or damaged ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it holds {type(values).__name__}")
    return cast(dict[str, Any], values)


def of_transformers(folder: Path) -> Model:
    """Errors: ValueError for another architecture, a vocabulary that is not Chameleon's, or missing weights."""
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
    return Model(config, config["vocabulary_map"], tokenizer, [shard for shard in shards if shard], folder)


def stored(name: str, shape: list[int], dtype: torch.dtype, tensors: Mapping[str, Tensor]) -> Stored:
    return Stored(name, tuple(shape), dtype, lambda: tensors[name])


def of_meta(folder: Path) -> Model:
    """A folder with params.json and consolidated*.pth, and the tokenizers in tokenizer/ two levels up, as Meta and
    Anole give them (models/7b), or beside. Errors: as of_transformers."""
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
    shard = [of_parts(key, parts, count.get(key.heads, 0), params["dim"] // heads) for key in keys]
    return Model(config, names, tokenizer, [shard], beside)


def of_parts(key: Key, parts: Sequence[Mapping[str, Tensor]], heads: int, size: int) -> Stored:
    """A tensor from the parts of a model-parallel checkpoint. heads: in all; size: of a head."""

    def read() -> Tensor:
        found = [part[key.meta] for part in parts]
        if key.dim == EACH and not key.heads:
            return found[0] if len(found) == 1 else torch.stack(found).float().mean(0).to(found[0].dtype)
        if key.dim == EACH:  # a norm of heads: each part has one for all of its heads
            return torch.stack([halves(one, size) for one in found]).repeat_interleave(heads // len(found), 0)
        whole = found[0] if len(found) == 1 else torch.cat(found, key.dim)
        return halves(whole.view(heads, size, -1), size, 1).reshape(whole.shape) if key.heads else whole

    with torch.device("meta"):  # the shape without the work
        shapes = [torch.empty(part[key.meta].shape) for part in parts]
    if key.dim == EACH:
        shape = (heads, size) if key.heads else tuple(shapes[0].shape)
    else:
        shape = tuple(torch.cat(shapes, key.dim).shape)
    return Stored(key.ours, shape, parts[0][key.meta].dtype, read)


def halves(values: Tensor, size: int, dim: int = 0) -> Tensor:
    """From rotary pairs side by side, as Meta has them, to first halves before second ones, as transformers has."""
    shape = values.shape
    pairs = values.reshape(*shape[:dim], size // 2, 2, *shape[dim + 1 :])
    return pairs.transpose(dim, dim + 1).reshape(shape)


def reordered(one: Stored, rows: Sequence[int], count: int) -> Stored:
    """The tensor with row rows[i] as its i-th, zeros where that is -1. count: of rows that it must have."""
    if one.name not in ROWS:
        return one
    if one.shape[0] != count:
        raise ValueError(f"{one.name} has {one.shape[0]} rows, but the vocabulary has {count}")
    places = torch.tensor(rows)

    def read() -> Tensor:
        moved = one.read()[places.clamp(min=0)]
        return moved.masked_fill_((places < 0)[:, None], 0)

    return Stored(one.name, (len(rows), *one.shape[1:]), one.dtype, read)


def text_tokenizer(path: Path, order: Order) -> TextTokenizer:
    """Their tokenizer with text alone, counted from 0. Errors: ValueError for a file that is none, or is another's."""
    content = read_json(path)
    words = content.get("model", {}).get("vocab")
    if not isinstance(words, dict):
        raise ValueError(f"{path} has no table of tokens: Chameleon's tokenizer has one")
    known = {*words, *(token["content"] for token in content.get("added_tokens", ()))}
    if lost := sorted(order.words.keys() - known)[:3]:
        raise ValueError(f"{path} does not belong to the model: it lacks {', '.join(map(repr, lost))}")
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in content["model"].get("merges", ())]
    model = {
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
    """Write `out`, a folder that CM3.from_pretrained loads.

    source: a folder of transformers, or of Meta's layout. image_tokenizer: one of ours by name or folder, or a
    checkpoint that tokenizer_image.convert reads, such as Meta's vqgan.ckpt; None = the one in the source, which
    transformers' layout keeps without a decoder.

    Errors: ValueError for what is missing, damaged or of another model; nothing is left of `out` then."""
    if not source.is_dir():
        raise ValueError(f"{source} is no folder: give the one with config.json, or with params.json")
    inside = sorted(source.glob("models/*/params.json"))
    source = inside[0].parent if len(inside) == 1 else source
    meta = (source / "params.json").is_file()
    model = of_meta(source) if meta else of_transformers(source)
    order = order_of(model.names)
    text = text_tokenizer(model.tokenizer, order)
    if image_tokenizer is None and meta and (model.beside / "vqgan.ckpt").is_file():
        image_tokenizer = model.beside / "vqgan.ckpt"
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
        config.save_pretrained(fresh)
        vocab = Vocab.from_config(config)
        save_flat(text, vocab, config.max_position_embeddings, fresh)
        role = roles(vocab)
        generation = {
            "bos_token_id": role["bos_token"],
            "eos_token_id": list(vocab.ends),
            "pad_token_id": role["pad_token"],
        }
        (fresh / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
        keep_beside(model.beside, fresh / SOURCE, model.names)
        carry(fresh, image.size[0])
        write_checksums(fresh)


def ready_image_tokenizer(given: str | Path, side: int | None, out: Path) -> ImageTokenizer:
    """Write it to `out`. side: of its images in pixels, where a checkpoint does not tell. Errors: ValueError, as
    tokenizer_image has them."""
    config = Path(given) / "config.json"
    if str(given) not in embedded_tokenizers() and not (config.is_file() and "n_embed" in read_json(config)):
        return convert_image_tokenizer(given, out, resolution=side)
    tokenizer = ImageTokenizer.from_pretrained(given)
    tokenizer.save_pretrained(out)
    return tokenizer


def side_of(model: Model) -> int | None:
    """Of images, in pixels: as transformers' configuration says, or Meta's vqgan.yaml."""
    if "resolution" in model.config.get("vq_config", {}):
        return model.config["vq_config"]["resolution"]
    described = model.beside / "vqgan.yaml"
    found = re.search(r"^\s*resolution:\s*(\d+)", described.read_text(), re.M) if described.is_file() else None
    return int(found[1]) if found else None


def keep_beside(folder: Path, out: Path, names: Mapping[str, int]) -> None:
    out.mkdir()
    (out / VOCABULARY).write_text(json.dumps(names, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    for path in {path for pattern in BESIDE for path in folder.glob(pattern)}:
        if path.is_file() and not path.name.endswith(".index.json"):
            shutil.copy2(path, out / path.name)


def convert_back(source: Path, out: Path, like: Path | None = None) -> None:
    """Write `out`, a folder that transformers' ChameleonForConditionalGeneration loads, from one that `convert` wrote,
    or from a model that was trained from it. like: the folder that `convert` wrote, where `source` is another. Errors:
    ValueError for any other folder."""
    check_files(source)
    config: CM3Config = read_config(source)
    kept = (like or source) / SOURCE
    if not (kept / VOCABULARY).is_file():
        raise ValueError(
            f"{like or source} has no {SOURCE}/{VOCABULARY}, by which a model goes back to Chameleon: was it trained "
            "from a converted one, then say which with --like"
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
    """The image tokenizer as transformers keeps it, without its decoder."""
    for name, tensor in image.model.state_dict().items():
        if not name.startswith("decoder."):
            value = tensor.detach().cpu()
            yield Stored(VQ + name, tuple(value.shape), value.dtype, lambda value=value: value)


def vq_config(image: ImageTokenizer) -> dict[str, Any]:
    """transformers' ChameleonVQVAEConfig."""
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
