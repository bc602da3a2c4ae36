"""Safetensors in and out, under the names that Hugging Face has on disk, into and from the fused
tensors.

Files are opened lazily: one tensor at a time is read and copied to its place, so that loading needs
the model's own memory and one tensor more. A rank of several reads only the rows and columns that
it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from srlm_fast.records import read_object

from .config import ModelConfig, ModelError
from .decoder import Model
from .quantised import QuantisedLinear

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Place:
    """Where a tensor on disk lives in the model: a parameter and its rows [start, stop)."""

    parameter: str
    start: int
    stop: int
    shape: tuple[int, ...]  # as on disk


def places(config: ModelConfig) -> dict[str, Place]:
    """Name on disk -> place, for every tensor of the architecture, in the order of the forward
    pass.
    """
    c = config
    found = {"model.embed_tokens.weight": _whole("embed.weight", c.vocab_size, c.hidden_size)}
    for i in range(c.num_layers):
        found |= _layer_places(c, f"model.layers.{i}.", f"layers.{i}.")
    found["model.norm.weight"] = _whole("norm.weight", c.hidden_size)
    if c.num_labels:
        found["score.weight"] = _whole("score.weight", c.num_labels, c.hidden_size)
    elif not c.tie_word_embeddings:
        found["lm_head.weight"] = _whole("lm_head.weight", c.vocab_size, c.hidden_size)
    return found


def _whole(parameter: str, *shape: int) -> Place:
    return Place(parameter, 0, shape[0], shape)


def _layer_places(c: ModelConfig, disk: str, ours: str) -> dict[str, Place]:
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    found = {
        f"{disk}input_layernorm.weight": _whole(f"{ours}attn_norm.weight", c.hidden_size),
        f"{disk}post_attention_layernorm.weight": _whole(f"{ours}mlp_norm.weight", c.hidden_size),
    }
    if c.qk_norm:
        for name in ("q_norm", "k_norm"):
            found[f"{disk}self_attn.{name}.weight"] = _whole(f"{ours}{name}.weight", c.head_dim)
    qkv = {"q_proj": q, "k_proj": kv, "v_proj": kv}
    found |= _fused(f"{disk}self_attn.", f"{ours}qkv.", qkv, c.hidden_size, c.qkv_bias)
    found |= _fused(f"{disk}self_attn.", f"{ours}o.", {"o_proj": c.hidden_size}, q, c.o_bias)
    mlp = {"gate_proj": c.intermediate_size, "up_proj": c.intermediate_size}
    found |= _fused(f"{disk}mlp.", f"{ours}gate_up.", mlp, c.hidden_size, c.mlp_bias)
    down = {"down_proj": c.hidden_size}
    return found | _fused(f"{disk}mlp.", f"{ours}down.", down, c.intermediate_size, c.mlp_bias)


def _fused(disk: str, ours: str, parts: dict[str, int], width: int, bias: bool) -> dict[str, Place]:
    """Parts stacked by rows into one weight (and one bias)."""
    found, start = {}, 0
    for name, rows in parts.items():
        stop = start + rows
        found[f"{disk}{name}.weight"] = Place(f"{ours}weight", start, stop, (rows, width))
        if bias:
            found[f"{disk}{name}.bias"] = Place(f"{ours}bias", start, stop, (rows,))
        start = stop
    return found


# Tensors that old checkpoints carry and that hold nothing which is not computed.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$")


def read_weights(model: Model, folder: Path) -> None:
    """Fill the model's tensors from `folder`. Raises ModelError naming the file or the tensor.

    Every tensor of the architecture must be there once with its shape, and no tensor may be left
    over: a file that fits only in part belongs to another model.
    """
    check_not_sharded(model)
    wanted = places(model.config)
    missing = dict.fromkeys(wanted)
    for file, name, stored in tensors_of(weight_files(folder)):
        place = wanted.get(name) or wanted.get(f"model.{name}")
        if place is None:
            _check_leftover(model, file, name)
            continue
        if tuple(stored.get_shape()) != place.shape:
            raise ModelError(
                f"{file}: {name} has shape {stored.get_shape()}; "
                f"config.json asks for {list(place.shape)}"
            )
        put_rows(model, place.parameter, place.start, stored)
        missing.pop(name if name in wanted else f"model.{name}", None)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelError(
            f"{folder}: tensor {next(iter(missing))} is missing from the weights{more}"
        )


@torch.no_grad()
def put_rows(model: Model, name: str, start: int, rows: Any) -> None:
    """Copy rows [start, start + N) of the whole parameter to where they lie, quantised where it is.

    rows: a tensor, or what reads a box of one when indexed; no more is read than lies here.
    """
    path, _, kind = name.rpartition(".")
    module = model.get_submodule(path)
    found = {name: rows}
    if isinstance(module, QuantisedLinear) and kind == "weight":  # a scale is that of a whole row
        weight, scale = module.quantise(rows[:].to(model.device))
        found = {name: weight, f"{path}.scale": scale}
    for key, part in found.items():
        for offsets, local in _pieces(model, key, model.get_parameter(key).detach()):
            _read_box(part, start, offsets, local)


def _pieces(model: Model, name: str, weight: Tensor) -> Sequence[tuple[tuple[int, ...], Tensor]]:
    if model.layout is None:
        return [((0,) * weight.ndim, weight)]
    try:
        return model.layout.pieces(name, weight)
    except ValueError as error:
        raise ModelError(str(error)) from None


def _read_box(rows: Any, begin: int, offsets: tuple[int, ...], local: Tensor) -> None:
    """Copy to a box of the parameter, `local`, what rows [begin, begin + N) of it have there."""
    first, *columns = offsets
    start, stop = max(begin, first), min(begin + shape_of(rows)[0], first + len(local))
    if start >= stop:
        return
    box = [slice(start - begin, stop - begin)]
    box += [slice(c, c + size) for c, size in zip(columns, local.shape[1:], strict=True)]
    local[start - first : stop - first].copy_(rows[tuple(box)])


def shape_of(rows: Any) -> tuple[int, ...]:
    return tuple(rows.shape if isinstance(rows, Tensor) else rows.get_shape())


def stored_weights(model: Model) -> dict[str, Tensor]:
    """The parameters by name, without gradients. Raises ModelError when they are DTensors of whose
    layout the model knows nothing.
    """
    check_not_sharded(model)
    return {name: weight.detach() for name, weight in model.named_parameters()}


def check_not_sharded(model: Model) -> None:
    if model.layout is None and any(hasattr(w, "placements") for w in model.parameters()):
        raise ModelError("the weights are sharded, but not by dist.shard or dist.tensor_parallel")


def _check_leftover(model: Model, file: Path, name: str) -> None:
    if _COMPUTED.search(name) or (name == "lm_head.weight" and model.config.tie_word_embeddings):
        return
    raise ModelError(
        f"{file}: tensor {name} has no place in a {model.config.family} model "
        f"of {model.config.num_layers} layers"
    )


def tensors_of(files: Iterable[Path]) -> Iterator[tuple[Path, str, Any]]:
    """File, name, and what reads a box of the tensor when indexed. Raises ModelError."""
    for file in files:
        if file.stat().st_size == 0:
            raise ModelError(f"{file}: is empty; wanted safetensors weights")
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():
                    yield file, name, shard.get_slice(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: is truncated or no safetensors file ({error})") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder. Raises ModelError saying what is there instead."""
    if (folder / INDEX).is_file():
        files = _indexed(folder / INDEX)
    elif (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    else:
        other = sorted(f.name for f in folder.glob("*.bin")) or sorted(
            f.name for f in folder.glob("*.pth")
        )
        found = f"found {other[0]}" if other else "found none"
        raise ModelError(f"{folder}: wanted weights in {SINGLE} or {INDEX}; {found}")
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: is missing; {INDEX} names it")
    return files


def _indexed(index: Path) -> list[Path]:
    try:
        weight_map = read_object(index, ModelError)["weight_map"]
        return [index.parent / name for name in sorted(set(weight_map.values()))]
    except (KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: is no safetensors index ({error})") from None
