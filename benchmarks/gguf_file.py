"""A model as a GGUF file, the format of llama.cpp: header, metadata, tensor table, tensors.

Little-endian; strings have a 64-bit length before them; tensors start at multiples of 32 bytes and
list their sizes from the innermost outward (ggml's docs/gguf.md, version 3).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from benchmarks.sampler_models import hf_tensors
from srlm_fast.model import Model, ModelConfig

ALIGNMENT = 32
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
_UINT32, _FLOAT32, _STRING = 4, 6, 8
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(model: Model, path: Path) -> None:
    """A Llama model without a vocabulary: token ids in, token ids out."""
    tensors = {
        _name(name): _prepared(name, t, model.config) for name, t in hf_tensors(model).items()
    }
    with path.open("wb") as file:
        metadata = _metadata(model.config)
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            _write_value(file, key, value)
        place = 0
        for name, tensor in tensors.items():
            sizes = tensor.shape[::-1]
            _write_string(file, name)
            file.write(struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
            file.write(struct.pack("<IQ", KINDS[tensor.dtype], place))
            place += tensor.nbytes + -tensor.nbytes % ALIGNMENT
        file.write(bytes(-file.tell() % ALIGNMENT))
        for tensor in tensors.values():
            file.write(memoryview(tensor.contiguous().view(torch.uint8).numpy()))
            file.write(bytes(-tensor.nbytes % ALIGNMENT))


def _metadata(c: ModelConfig) -> dict[str, str | int | float]:
    return {
        "general.architecture": "llama",
        "llama.vocab_size": c.vocab_size,
        "llama.context_length": c.max_position_embeddings,
        "llama.embedding_length": c.hidden_size,
        "llama.block_count": c.num_layers,
        "llama.feed_forward_length": c.intermediate_size,
        "llama.attention.head_count": c.num_heads,
        "llama.attention.head_count_kv": c.num_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "llama.rope.dimension_count": c.head_dim,
        "llama.rope.freq_base": c.rope_theta,
        "tokenizer.ggml.model": "none",
    }


def _name(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    index, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{_LAYER[rest.removesuffix('.weight')]}.weight"


def _prepared(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Norms are fp32; llama.cpp rotates neighbours where transformers rotates halves."""
    if tensor.ndim == 1:
        return tensor.float()
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    rows, width = tensor.shape
    return tensor.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def _write_value(file: BinaryIO, key: str, value: str | int | float) -> None:
    _write_string(file, key)
    if isinstance(value, str):
        file.write(struct.pack("<I", _STRING))
        _write_string(file, value)
    elif isinstance(value, int):
        file.write(struct.pack("<II", _UINT32, value))
    else:
        file.write(struct.pack("<If", _FLOAT32, value))


def _write_string(file: BinaryIO, text: str) -> None:
    data = text.encode()
    file.write(struct.pack("<Q", len(data)) + data)
