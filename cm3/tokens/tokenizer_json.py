"""tokenizer.json of a model folder: the whole vocabulary, so that other tools can read it.

Special tokens, text and image codes have the model's ids there (vocab.py), so that AutoTokenizer, vLLM and `tokenizers`
give the ids that the model needs. No string is encoded as a special token or an image code: no merge leads to their
names, and tokenizer_config.json sets split_special_tokens.

Inside the package, a TextTokenizer has text ids only, from 0. Folders whose tokenizer.json is like that can be read
too.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cm3.tokens.encoding import roles
from cm3.tokens.text_tokenizer import FILE, TextTokenizer
from cm3.tokens.vocab import Vocab

CONFIG = "tokenizer_config.json"
TABLES = ("BPE", "WordPiece", "WordLevel")  # models of `tokenizers` with a table from token to id


def code_name(code: int) -> str:
    """The name of an image code."""
    return f"<code:{code}>"


def names(vocab: Vocab, taken: set[str]) -> dict[str, int]:
    """The names and ids of special tokens and image codes. A name that a text token has gets further brackets."""
    wanted = {vocab.name(id): id for id in range(vocab.num_special)}
    wanted |= {code_name(code): vocab.code_to_id(code) for code in range(vocab.num_codes)}
    free: dict[str, int] = {}
    for name, id in wanted.items():
        while name in taken:
            name = f"<{name}>"
        free[name] = id
    return free


def whole_vocabulary(text: TextTokenizer, vocab: Vocab) -> Tokenizer:
    """The tokenizer of the whole vocabulary.

    Raises:
        ValueError: the tokenizer's model has no table of tokens.
    """
    content: dict[str, Any] = json.loads(text.tokenizer.to_str())
    model = content["model"]
    if model.get("type") not in TABLES:
        raise ValueError(
            f"a tokenizer of type {model.get('type')} cannot be renumbered: one of {', '.join(TABLES)} is needed"
        )
    words = {word: vocab.text_to_ids(int(id)) for word, id in model["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = vocab.text_to_ids(int(token["id"]))
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    model["vocab"] = {**names(vocab, {*words, *added}), **added, **words}
    return Tokenizer.from_str(json.dumps(without_processor(content)))


def without_processor(content: dict[str, Any]) -> dict[str, Any]:
    """Without the post-processor, which adds special tokens by their old ids. encoding.py adds them."""
    return {**content, "post_processor": None}


def text_only(flat: Tokenizer, vocab: Vocab) -> TextTokenizer:
    """The inverse of whole_vocabulary."""
    content: dict[str, Any] = json.loads(flat.to_str())
    added = [token for token in content["added_tokens"] if vocab.is_text(token["id"])]
    for token in added:
        token["id"] = vocab.ids_to_text(int(token["id"]))
    words = {word: vocab.ids_to_text(id) for word, id in content["model"]["vocab"].items() if vocab.is_text(id)}
    content["model"]["vocab"], content["added_tokens"] = words, added
    return TextTokenizer(Tokenizer.from_str(json.dumps(content)))


def save_flat(text: TextTokenizer, vocab: Vocab, context: int, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json. `context`: tokens that the model can read."""
    flat = whole_vocabulary(text, vocab)
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
    """The text tokenizer of a model folder.

    Raises:
        ValueError: its file is missing or not readable.
    """
    text = TextTokenizer.load(folder)
    first = text.tokenizer.id_to_token(vocab.first_code)
    return text_only(text.tokenizer, vocab) if first is not None and first.strip("<>") == "code:0" else text
