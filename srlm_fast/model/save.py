"""A model folder as Hugging Face has it, written beside its final place and renamed when whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from .config import FAMILIES
from .decoder import Model
from .weights import INDEX, SINGLE, places

MAX_SHARD_BYTES = 5 * 10**9


def save_model(model: Model, folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write config, generation config, weights, tokenizer and chat template; `folder` appears whole
    or not at all.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_json(temporary / "config.json", _config(model))
    if model.generation_config:
        _write_json(temporary / "generation_config.json", model.generation_config)
    _write_weights(model, temporary, max_shard_bytes)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(temporary)
    _sync(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def _config(model: Model) -> dict[str, Any]:
    hf = model.config.to_hf()
    hf.pop("torch_dtype", None)
    hf.pop("quantization_config", None)
    name = str(model.dtype).removeprefix("torch.")
    return hf | {"architectures": [FAMILIES[model.config.family]], "dtype": name}


def _write_weights(model: Model, folder: Path, max_shard_bytes: int) -> None:
    parameters = dict(model.named_parameters())
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, place in places(model.config).items():
        tensor = parameters[place.parameter].detach()[place.start : place.stop].contiguous()
        if filled and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, metadata={"format": "pt"})
        return
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(names, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _sync(folder: Path) -> None:
    """Bring the files to disk, readable as the config is, before the folder gets its name."""
    mode = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)  # safetensors makes its files readable by their owner only
            with open(path, "rb") as file:
                os.fsync(file.fileno())
