"""The text tokenizer of a model folder: tokenizer.json over the whole vocabulary, as every other tool reads it.

Special tokens, text and image codes stand there at the model's ids (vocab.py), so that AutoTokenizer, vLLM and
`tokenizers` itself give the ids that the model wants. Only text can be spelled: the other names are in the vocabulary,
but no merge leads to them, and tokenizer_config.json asks for split_special_tokens.

Inside the package a TextTokenizer counts from 0 and knows text alone. Folders whose tokenizer.json does so too are read
as well.
"""

# tokenizers has no types.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cm3.tokens.encoding import roles
from cm3.tokens.text_tokenizer import FILE, TextTokenizer
from cm3.tokens.vocab import Vocab

CONFIG = "tokenizer_config.json"
TABLES = ("BPE", "WordPiece", "WordLevel")  # models of `tokenizers` that keep a table from token to id


def code_name(code: int) -> str:
    return f"<code:{code}>"


def names(vocab: Vocab, taken: set[str]) -> dict[str, int]:
    """Name -> id of all that is no text; in further brackets where a text token has the name already."""
    wanted = {vocab.name(id): id for id in range(vocab.num_special)}
    wanted |= {code_name(code): vocab.code_to_id(code) for code in range(vocab.num_codes)}
    free: dict[str, int] = {}
    for name, id in wanted.items():
        while name in taken:
            name = f"<{name}>"
        free[name] = id
    return free


def flattened(text: TextTokenizer, vocab: Vocab) -> Tokenizer:
    """The tokenizer over the whole vocabulary. Errors: ValueError for a kind of model that has no table of tokens."""
    content: dict[str, Any] = json.loads(text.tokenizer.to_str())
    model = content["model"]
    if model.get("type") not in TABLES:
        raise ValueError(
            f"a tokenizer of type {model.get('type')} cannot be numbered anew: one of {', '.join(TABLES)} is needed"
        )
    words = {word: vocab.text_to_ids(int(id)) for word, id in model["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = vocab.text_to_ids(int(token["id"]))
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    model["vocab"] = {**names(vocab, {*words, *added}), **added, **words}
    return Tokenizer.from_str(json.dumps(without_processor(content)))


def without_processor(content: dict[str, Any]) -> dict[str, Any]:
    """What lays special tokens around a text names them by ids that are others now; encoding.py lays them."""
    return {**content, "post_processor": None}


def text_alone(flat: Tokenizer, vocab: Vocab) -> TextTokenizer:
    """The inverse of flattened."""
    content: dict[str, Any] = json.loads(flat.to_str())
    added = [token for token in content["added_tokens"] if vocab.is_text(token["id"])]
    for token in added:
        token["id"] = vocab.ids_to_text(int(token["id"]))
    words = {word: vocab.ids_to_text(id) for word, id in content["model"]["vocab"].items() if vocab.is_text(id)}
    content["model"]["vocab"], content["added_tokens"] = words, added
    return TextTokenizer(Tokenizer.from_str(json.dumps(content)))


def save_flat(text: TextTokenizer, vocab: Vocab, context: int, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json. context: tokens that the model holds."""
    flat = flattened(text, vocab)
    flat.save(str(folder / FILE))
    name = {id: flat.id_to_token(id) for id in range(vocab.num_special)}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "CM3Processor",
        "model_max_length": context,
        **{role: name[id] for role, id in roles(vocab).items()},
        "extra_special_tokens": list(name.values()),
        "padding_side": "left",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load_text(folder: str | Path, vocab: Vocab) -> TextTokenizer:
    """The text tokenizer of a model folder. Errors: ValueError for a missing or unreadable file."""
    text = TextTokenizer.load(folder)
    first = text.tokenizer.id_to_token(vocab.first_code)
    return text_alone(text.tokenizer, vocab) if first is not None and first.strip("<>") == "code:0" else text
