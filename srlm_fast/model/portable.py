"""What other readers of a model folder want beyond what transformers 5 writes.

vLLM and transformers 4 look for `torch_dtype`, `rope_theta` and `rope_scaling` where transformers 5
has `dtype` and `rope_parameters`, and know its tokenizer class under an older name. Each value
stands under both names then; transformers 5 reads either.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from srlm_fast.records import read_object

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
GENERATION = "generation_config.json"
OLD_CLASS = {"TokenizersBackend": "PreTrainedTokenizerFast"}
LOCAL = ("is_local", "local_files_only")  # how the tokenizer was read, not what it is
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def portable_config(hf: dict[str, Any]) -> dict[str, Any]:
    """A config.json's dictionary with dtype and rope under both names."""
    dtype = hf.get("dtype") or hf.get("torch_dtype")
    found = hf | ({"dtype": dtype, "torch_dtype": dtype} if dtype else {})
    rope = hf.get("rope_parameters")
    if not isinstance(rope, dict):
        return found
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    plain = scaling.get("rope_type", "default") == "default"
    theta = rope.get("rope_theta", hf.get("rope_theta", 10000.0))
    return found | {"rope_theta": theta, "rope_scaling": None if plain else scaling}


def portable_tokenizer(found: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json's dictionary that transformers 4 reads too."""
    kept = {name: value for name, value in found.items() if name not in LOCAL}
    name = kept.get("tokenizer_class")
    if name in OLD_CLASS:
        kept["tokenizer_class"] = OLD_CLASS[name]
    extra = kept.get("extra_special_tokens")
    if isinstance(extra, list):  # transformers 4 has an object under this name
        del kept["extra_special_tokens"]
        kept.setdefault("additional_special_tokens", extra)
    return kept


def generation_config(hf: dict[str, Any]) -> dict[str, Any]:
    """A generation_config.json for a model that came with none: its token ids."""
    return {name: hf[name] for name in TOKEN_IDS if hf.get(name) is not None}


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer with its chat template."""
    tokenizer.save_pretrained(folder)
    rewrite(folder / TOKENIZER, portable_tokenizer)


def make_portable(folder: Path) -> None:
    """Put a folder that was written otherwise into this form; its weights stay as they are."""
    rewrite(folder / CONFIG, portable_config)
    rewrite(folder / TOKENIZER, portable_tokenizer)
    path = folder / GENERATION
    if (folder / CONFIG).is_file() and not path.is_file():
        write_json(path, generation_config(read_object(folder / CONFIG)))


def rewrite(path: Path, change: Any) -> None:
    """Put `change` of a file's object in its place; nothing where there is no such file."""
    if path.is_file():
        write_json(path, change(read_object(path)))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
