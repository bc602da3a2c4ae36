"""`load_model`: a folder, a preset name or a hub id -> a Model on a device."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from srlm_fast.records import InputError, read_object
from srlm_fast.run_models import TINY, resolve_model

from . import chat
from .config import ModelConfig, ModelError, token_ids
from .decoder import Model, empty_model
from .fp8 import Fp8Linear
from .int8 import Int8Linear
from .lora import Adapter, attach_lora, merge_lora, reset_lora
from .peft import adapter_file, is_adapter, read_adapter, read_adapter_config, trained_beside
from .presets import PRESETS
from .quantised import QuantisedLinear, empty_linears, prepare_linears
from .rope import rope_frequencies
from .weights import read_weights, weight_files

BASE_DTYPES: dict[str, type[QuantisedLinear]] = {"fp8": Fp8Linear, "int8": Int8Linear}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    folder_or_name: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    split: Callable[[Model], None] | None = None,
    base_dtype: str | None = None,
    adapter: Adapter | None = None,
) -> Model:
    """Load a Llama, Mistral, Qwen2 or Qwen3 model, or an adapter with the base that it names.

    folder_or_name: a Hugging Face folder, one that PEFT wrote, "tiny", a preset ("llama-3-8b"), or
    a hub id, taken from the local cache and downloaded where there is a network. device: default
    "cuda" where there is one, else "cpu". dtype: default float32 on a CPU, bfloat16 elsewhere.
    split: what splits the weights over ranks before memory is taken for them
    (`dist.tensor_parallel` on a mesh). base_dtype: "fp8" or "int8" puts the layers' matrices into
    it as they are read, frozen; an adapter of ours brings the one that it was trained beside.
    adapter: a fresh one, where the folder holds none. Raises ModelError in one line.
    """
    folder = find_folder(folder_or_name)
    if not is_adapter(folder):
        config = read_config(folder)
        model = load_folder(folder, config, device, dtype, split, base_dtype, adapter)
        model.source = _source(folder_or_name, folder)
        return model
    return _load_adapted(
        folder, device, dtype, split, base_dtype or trained_beside(folder), adapter
    )


def load_merged(
    folder: Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Model:
    """An adapter's base with the adapter's product added to its weights: a model without one.
    device, dtype: as `load_model`. Raises ModelError.
    """
    return merge_lora(_load_adapted(folder, device, dtype))


def _load_adapted(
    folder: Path,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    split: Callable[[Model], None] | None = None,
    base_dtype: str | None = None,
    adapter: Adapter | None = None,
) -> Model:
    """The base that an adapter's folder names, with the adapter and the folder's tokenizer."""
    saved = read_adapter_config(folder)
    adapter_file(folder)
    base = base_folder(folder)
    own = Adapter(saved.config, 0) if adapter is None else replace(adapter, config=saved.config)
    model = load_folder(base, read_config(base), device, dtype, split, base_dtype, own)
    model.source = saved.base
    read_adapter(model, folder)
    if has_tokenizer(folder):
        model.tokenizer = read_tokenizer(folder)
        check_tokenizer(model.tokenizer, model.config, folder)
    return model


def _source(folder_or_name: str | Path, folder: Path) -> str:
    """What others find these weights by: the folder that was given, or a hub id; "tiny" for the
    package's own.
    """
    name = str(folder_or_name)
    if name != TINY and Path(name).expanduser().is_dir():
        return str(folder.absolute())
    preset = PRESETS.get(name.lower())
    return preset.hub_id if preset is not None and preset.hub_id else name


def base_folder(folder: Path) -> Path:
    """The folder of the base that an adapter's folder names. Raises ModelError."""
    name = read_adapter_config(folder).base
    try:
        base = find_folder(name)
    except ModelError as error:
        raise ModelError(f"{folder}: the base of the adapter: {error}") from None
    if is_adapter(base):
        raise ModelError(f"{folder}: the base of the adapter, {name}, is an adapter itself")
    return base


def load_folder(
    folder: Path,
    config: ModelConfig,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    split: Callable[[Model], None] | None = None,
    base_dtype: str | None = None,
    adapter: Adapter | None = None,
) -> Model:
    """`load_model` for a folder of a whole model whose configuration has been read."""
    weight_files(folder)
    tokenizer = read_tokenizer(folder)
    check_tokenizer(tokenizer, config, folder)
    place = resolve_device(device)
    kind, number = base_kind(base_dtype), resolve_dtype(dtype, place)

    def shape(model: Model) -> None:
        if kind is not None:
            empty_linears(model, kind)
        if adapter is not None:
            attach_lora(model, adapter.config, adapter.seed)
        if split is not None:
            try:
                split(model)
            except ValueError as error:
                raise ModelError(f"{folder}: cannot be split over these ranks ({error})") from None

    if kind is not None:
        try:
            kind.check(place, number)
        except ValueError as error:
            raise ModelError(f"base dtype {base_dtype}: {error}") from None
    model = empty_model(config, place, number, tokenizer, shape)
    model.generation_config, model.folder = read_generation_config(folder), folder
    read_weights(model, folder)
    prepare_linears(model)
    if adapter is not None:
        reset_lora(model)
    return model


def base_kind(name: str | None) -> type[QuantisedLinear] | None:
    """What a base dtype's layers are. Raises ModelError."""
    if name is not None and name not in BASE_DTYPES:
        raise ModelError(f"base dtype {name!r} is unknown; wanted {', '.join(BASE_DTYPES)}")
    return None if name is None else BASE_DTYPES[name]


def find_folder(folder_or_name: str | Path) -> Path:
    """The folder that holds a model. Raises ModelError saying what was looked for and where."""
    name = str(folder_or_name)
    if name == TINY:
        return Path(__file__).parent.parent / "tiny" / "m0"
    try:
        path = Path(resolve_model(name).folder_or_name)
    except InputError as error:
        raise ModelError(str(error)) from None
    if path.is_dir():
        return path
    preset = PRESETS.get(name.lower())
    if preset is None and (name.count("/") != 1 or name[0] in "./~"):
        raise ModelError(f"{name}: no such folder{_nearest(name)}")
    return _hub_folder(preset.hub_id if preset and preset.hub_id else name)


def _nearest(name: str) -> str:
    known = [TINY, *PRESETS]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {near[0]}?" if near else f", and no preset; presets: {', '.join(known)}"


def _hub_folder(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=wanted, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{hub_id}: not in the local Hugging Face cache and cannot be downloaded ({reason})"
        ) from None


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a model folder, of its base where it holds an adapter. Raises
    ModelError.
    """
    if is_adapter(folder):
        folder = base_folder(folder)
    path = folder / "config.json"
    config = ModelConfig.from_hf(read_hf(folder), str(path))
    rope_frequencies(config)  # refuses a scaling that lacks a value
    return config


def read_hf(folder: Path) -> dict[str, Any]:
    """The dictionary in a folder's `config.json`. Raises ModelError."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: wanted a model folder; it has no config.json")
    return read_object(path, ModelError)


TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"


def read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer with a chat template. Raises ModelError."""
    if not has_tokenizer(folder):
        raise ModelError(f"{folder}: no tokenizer; wanted tokenizer.json or tokenizer.model")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises many kinds for a broken file
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{folder}: the tokenizer cannot be read ({reason})") from None
    # Its own word on texts over the length it was made for; ours is said where it matters.
    vars(tokenizer).setdefault("deprecation_warnings", {})[TOO_LONG] = True
    chat.ensure_chat_template(tokenizer)
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    return any((folder / name).is_file() for name in files)


def check_tokenizer(tokenizer: Any, config: ModelConfig, folder: Path) -> None:
    """Refuse a tokenizer of another model, and a chat template that cannot be rendered."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= config.vocab_size:
        raise ModelError(
            f"{folder}: the tokenizer has the id {largest}, config.json has vocab_size "
            f"{config.vocab_size}; wanted a tokenizer of this model"
        )
    try:
        chat.encode(tokenizer, "Hello.")
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The folder's generation_config.json, {} where there is none. Raises ModelError."""
    path = folder / "generation_config.json"
    found = read_object(path, ModelError)
    token_ids(found.get("eos_token_id"), str(path))
    return found


def resolve_device(device: str | torch.device | None) -> torch.device:
    """A device that is there. Raises ModelError naming those that are."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("meta")
    name = "cpu" if found.type == "cpu" else f"{found.type}:{found.index or 0}"
    if name not in there:
        raise ModelError(
            f"device {str(device)!r} is not there; this machine has {', '.join(there)}"
        )
    return found


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """float32 on a CPU and bfloat16 elsewhere unless said otherwise. Raises ModelError."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ModelError(f"dtype {str(dtype)!r} is unknown; wanted {', '.join(DTYPES)}")
    return found
