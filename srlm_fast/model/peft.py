"""Adapters in and out in PEFT's layout: `adapter_config.json`, `adapter_model.safetensors`.

Each part of a fused linear is a module of its own there:
base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight [r, K], ...lora_B.weight [N, r].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from srlm_fast.records import read_object

from .config import ModelConfig, ModelError
from .decoder import Model
from .lora import PARTS, TARGETS, LoraConfig, lora_parameters, reset_lora
from .portable import save_tokenizer, write_json
from .quantised import quantised_kind
from .save import whole_folder
from .weights import Place, check_not_sharded, put_rows, read_weights, shape_of, tensors_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base.json"  # ours: in which form the base was trained beside; others do not look at it
BLOCKS = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}
# Fields that change what an adapter computes, and the values that change nothing. PiSSA, OLoRA and
# others of `init_lora_weights` change the base too, each time that PEFT reads the adapter.
PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica"),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "layers_to_transform": (),
    "layer_replication": (),
    "exclude_modules": ([],),
    "target_parameters": ([],),
    "trainable_token_indices": (),
    "alora_invocation_tokens": (),
    "arrow_config": (),
    "kasa_config": (),
    "monteclora_config": (),
    "velora_config": (),
}


@dataclass(frozen=True)
class SavedAdapter:
    """What a folder's adapter_config.json says. base: a folder or a name."""

    config: LoraConfig
    base: str


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def adapter_file(folder: Path) -> Path:
    """Raises ModelError where the weights are missing."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise ModelError(f"{folder}: an adapter without its weights; wanted {WEIGHTS}")
    return file


def trained_beside(folder: Path) -> str | None:
    """The base dtype that an adapter of ours was trained with. Raises ModelError."""
    path = folder / BASE
    if not path.is_file():
        return None
    try:
        return read_object(path, ModelError)["base_dtype"]
    except KeyError:
        raise ModelError(f"{path}: wanted an object with base_dtype") from None


def read_adapter_config(folder: Path) -> SavedAdapter:
    """Raises ModelError for what is no LoRA adapter of ours, in one line."""
    path = folder / CONFIG
    row = read_object(path, ModelError)
    if row.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type is {row.get('peft_type')!r}; wanted LORA")
    for name, values in PLAIN.items():
        if row.get(name) is not None and row[name] not in values:
            raise ModelError(f"{path}: {name} is {row[name]!r}; it is not supported")
    base = row.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path}: base_model_name_or_path is {base!r}; wanted the base model")
    return SavedAdapter(_lora_config(row, path), base)


def _lora_config(row: dict[str, Any], path: Path) -> LoraConfig:
    targets = row.get("target_modules")
    targets = list(TARGETS) if targets == "all-linear" else targets
    if not isinstance(targets, list):
        raise ModelError(f"{path}: target_modules is {targets!r}; wanted a list of names")
    unknown = sorted(str(name) for name in targets if name not in TARGETS)
    if unknown:
        raise ModelError(
            f"{path}: target_modules has {unknown[0]!r}; wanted some of {', '.join(TARGETS)}"
        )
    rank = _number(row, "r", path)
    if rank != int(rank):
        raise ModelError(f"{path}: r is {rank!r}; wanted a whole number")
    alpha, dropout = (_number(row, name, path) for name in ("lora_alpha", "lora_dropout"))
    if row.get("use_rslora"):  # alpha / sqrt(r), arXiv 2312.03732
        alpha *= math.sqrt(max(rank, 0.0))
    try:
        return LoraConfig(int(rank), alpha, dropout, tuple(t for t in TARGETS if t in targets))
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from None


def _number(row: dict[str, Any], name: str, path: Path) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"{path}: {name} is {value!r}; wanted a number")
    return float(value)


def adapter_places(config: ModelConfig, lora: LoraConfig) -> dict[str, Place]:
    """Name on disk -> place, for both factors of every part that has an adapter."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    width, ffn = config.hidden_size, config.intermediate_size
    rows = dict(zip(TARGETS, (q, kv, kv, width, ffn, ffn, width), strict=True))
    columns = {"qkv": width, "o": q, "gate_up": width, "down": ffn}
    found = {}
    for i in range(config.num_layers):
        for linear, parts in PARTS.items():
            ours, start, r = f"layers.{i}.{linear}.lora", 0, lora.rank
            for p, part in enumerate(name for name in parts if name in lora.targets):
                disk = f"base_model.model.model.layers.{i}.{BLOCKS[linear]}.{part}"
                stop, shape = start + rows[part], (r, columns[linear])
                found[f"{disk}.lora_A.weight"] = Place(f"{ours}.A", p * r, (p + 1) * r, shape)
                found[f"{disk}.lora_B.weight"] = Place(f"{ours}.B", start, stop, (rows[part], r))
                start = stop
    return found


def read_adapter(model: Model, folder: Path) -> None:
    """Fill the model's adapter from `folder`. Raises ModelError naming what does not fit."""
    saved = read_adapter_config(folder)
    if model.adapter is None:
        raise ModelError(f"{folder}: is an adapter, the model has none; load the folder itself")
    _check_same(saved.config, model.adapter.config, folder)
    check_not_sharded(model)
    wanted = adapter_places(model.config, saved.config)
    file = adapter_file(folder)
    missing = dict.fromkeys(wanted)
    for _, name, tensor in tensors_of([file]):
        place = wanted.get(name)
        if place is None:
            raise ModelError(f"{file}: tensor {name} has no place in this model's adapter")
        if shape_of(tensor) != place.shape:
            raise ModelError(
                f"{file}: {name} has shape {list(shape_of(tensor))}; "
                f"the base model asks for {list(place.shape)}"
            )
        put_rows(model, place.parameter, place.start, tensor)
        missing.pop(name)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelError(f"{file}: tensor {next(iter(missing))} is missing{more}")


def _check_same(saved: LoraConfig, own: LoraConfig, folder: Path) -> None:
    for name in ("rank", "alpha", "targets"):
        found, wanted = getattr(saved, name), getattr(own, name)
        if found != wanted:
            raise ModelError(f"{folder}: an adapter of {name} {found}; the model's has {wanted}")


def load_into(model: Model, folder: Path) -> None:
    """`Model.load_weights`: an adapter, or a base. Raises ModelError."""
    if folder.is_dir() and is_adapter(folder):
        read_adapter(model, folder)
        return
    if model.adapter is None or folder != model.folder:
        read_weights(model, folder)
    if model.adapter is not None:
        if folder != model.folder:
            model.source, model.folder = str(folder.absolute()), folder
        reset_lora(model)


def save_adapter(model: Model, folder: Path) -> None:
    """Write adapter, base's name and tokenizer; `folder` appears whole or not at all. Where the
    weights are split over ranks, all of them gather and the first one writes.
    """
    check_not_sharded(model)
    tensors = _gathered(model)
    if model.layout is None or model.layout.writes:
        with whole_folder(folder) as temporary:
            write_json(temporary / CONFIG, _config(model))
            if kind := quantised_kind(model):
                write_json(temporary / BASE, {"base_dtype": kind})
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
            if model.tokenizer is not None:
                save_tokenizer(model.tokenizer, temporary)
    if model.layout is not None:
        model.layout.wait()


def _gathered(model: Model) -> dict[str, Tensor]:
    """Every tensor of the file, whole."""
    assert model.adapter is not None
    factors = {name: factor.detach() for name, factor in lora_parameters(model)}
    if model.layout is not None:
        factors = {name: model.layout.whole(name, part) for name, part in factors.items()}
    places = adapter_places(model.config, model.adapter.config)
    return {
        name: factors[place.parameter][place.start : place.stop].contiguous().cpu()
        for name, place in places.items()
    }


def _config(model: Model) -> dict[str, Any]:
    assert model.adapter is not None
    lora = model.adapter.config
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.source,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
