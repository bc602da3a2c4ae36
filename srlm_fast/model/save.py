"""A model folder as Hugging Face has it, written beside its final place and renamed when whole."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from .config import FAMILIES, ModelError
from .decoder import Model
from .portable import generation_config, portable_config, save_tokenizer, write_json
from .quantised import quantised_kind
from .weights import INDEX, SINGLE, Place, places, stored_weights

MAX_SHARD_BYTES = 5 * 10**9


def save_model(model: Model, folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write config, generation config, weights, tokenizer and chat template; `folder` appears whole
    or not at all.

    Where the weights are split over ranks, all of them gather and the first one writes. Raises
    ModelError when they are quantised, which has no place on disk.
    """
    if kind := quantised_kind(model):
        raise ModelError(f"the weights are {kind}, which is not saved; wanted an adapter to save")
    shards = _shards(model, max_shard_bytes)
    tensors = _gathered(model, stored_weights(model), shards)
    if model.layout is None or model.layout.writes:
        _write(model, folder, shards, tensors)
    else:
        for _ in tensors:
            pass
    if model.layout is not None:
        model.layout.wait()


def _write(
    model: Model, folder: Path, shards: list[dict[str, Place]], tensors: Iterator[dict[str, Tensor]]
) -> None:
    with whole_folder(folder) as temporary:
        hf = _config(model)
        write_json(temporary / "config.json", hf)
        write_json(
            temporary / "generation_config.json", model.generation_config or generation_config(hf)
        )
        _write_weights(temporary, shards, tensors)
        if model.tokenizer is not None:
            save_tokenizer(model.tokenizer, temporary)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `folder` at the end."""
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder}: is a file; wanted the name of a folder")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # on a full disk it is in the way
        raise


def _config(model: Model) -> dict[str, Any]:
    hf = model.config.to_hf()
    hf.pop("torch_dtype", None)
    hf.pop("quantization_config", None)
    name = str(model.dtype).removeprefix("torch.")
    architecture, labels = FAMILIES[model.config.family], model.config.num_labels
    if labels:
        architecture = architecture.replace("CausalLM", "SequenceClassification")
        names = [f"LABEL_{i}" for i in range(labels)]
        hf |= {"id2label": {str(i): name for i, name in enumerate(names)}}
        hf |= {"label2id": {name: i for i, name in enumerate(names)}}
    return portable_config(hf | {"architectures": [architecture], "dtype": name})


def _shards(model: Model, max_shard_bytes: int) -> list[dict[str, Place]]:
    """The places of each file's tensors, in the order of the forward pass."""
    shards: list[dict[str, Place]] = [{}]
    filled = 0
    for name, place in places(model.config).items():
        size = math.prod(place.shape) * model.dtype.itemsize
        if filled and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = place
        filled += size
    return shards


def _gathered(
    model: Model, weights: dict[str, Tensor], shards: list[dict[str, Place]]
) -> Iterator[dict[str, Tensor]]:
    """The tensors of one file after the other: split weights are never all there at once."""
    held = ""
    for shard in shards:
        tensors = {}
        for name, place in shard.items():
            if place.parameter != held:  # parts of a fused weight follow each other
                held, whole = place.parameter, weights[place.parameter]
                if model.layout is not None:
                    whole = model.layout.whole(held, whole)
            tensors[name] = whole[place.start : place.stop].contiguous()
        yield tensors


def _write_weights(
    folder: Path, shards: list[dict[str, Place]], tensors: Iterator[dict[str, Tensor]]
) -> None:
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]
    total = 0
    for file, shard in zip(names, tensors, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(shards) > 1:
        weight_map = {n: file for file, shard in zip(names, shards, strict=True) for n in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _sync(folder: Path) -> None:
    """Bring the files to disk, readable as a config is, before the folder gets its name."""
    mode = next(folder.glob("*config.json")).stat().st_mode
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)  # safetensors makes its files readable by their owner only
            with open(path, "rb") as file:
                os.fsync(file.fileno())
