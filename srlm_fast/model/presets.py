"""Models known by a short name: their hub id, and their configuration for planning without their
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .config import ModelConfig


@dataclass(frozen=True)
class Preset:
    """`hub_id` is None for the model that comes with the package."""

    hub_id: str | None
    hf: dict[str, Any]

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.from_hf(self.hf)


def hub_id(name: str) -> str | None:
    """What a model is called on the hub: of a preset, or of an id itself; None for a folder and for
    the model that comes with the package.
    """
    if name.lower() in PRESETS:
        return PRESETS[name.lower()].hub_id
    return name if name.count("/") == 1 and name[0] not in "./~" else None


def _hf(
    family: str, vocab: int, width: int, ffn: int, layers: int, heads: int, kv: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": family,
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "rms_norm_eps": 1e-5 if family in ("llama", "mistral") else 1e-6,
        **more,
    }


_LLAMA2 = {"max_position_embeddings": 4096, "rope_theta": 10000.0, "eos_token_id": 2}
_LLAMA3 = {"max_position_embeddings": 8192, "rope_theta": 500000.0, "eos_token_id": 128001}
_LLAMA31 = _LLAMA3 | {
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_QWEN = {"max_position_embeddings": 32768, "rope_theta": 1000000.0, "eos_token_id": 151643}
_TIED = {"tie_word_embeddings": True}
_QWEN3 = _QWEN | {"head_dim": 128, "max_position_embeddings": 40960, "eos_token_id": 151645}
_MISTRAL = {"max_position_embeddings": 32768, "rope_theta": 10000.0, "eos_token_id": 2}

PRESETS: dict[str, Preset] = {
    "llama-2-7b": Preset(
        "meta-llama/Llama-2-7b-hf", _hf("llama", 32000, 4096, 11008, 32, 32, 32, **_LLAMA2)
    ),
    "llama-2-13b": Preset(
        "meta-llama/Llama-2-13b-hf", _hf("llama", 32000, 5120, 13824, 40, 40, 40, **_LLAMA2)
    ),
    "llama-2-70b": Preset(
        "meta-llama/Llama-2-70b-hf", _hf("llama", 32000, 8192, 28672, 80, 64, 8, **_LLAMA2)
    ),
    "llama-3-8b": Preset(
        "meta-llama/Meta-Llama-3-8B", _hf("llama", 128256, 4096, 14336, 32, 32, 8, **_LLAMA3)
    ),
    "llama-3.1-8b": Preset(
        "meta-llama/Llama-3.1-8B", _hf("llama", 128256, 4096, 14336, 32, 32, 8, **_LLAMA31)
    ),
    "llama-3.1-70b": Preset(
        "meta-llama/Llama-3.1-70B", _hf("llama", 128256, 8192, 28672, 80, 64, 8, **_LLAMA31)
    ),
    "mistral-7b": Preset(
        "mistralai/Mistral-7B-v0.1",
        _hf("mistral", 32000, 4096, 14336, 32, 32, 8, **_MISTRAL, sliding_window=4096),
    ),
    "qwen2.5-0.5b": Preset(
        "Qwen/Qwen2.5-0.5B", _hf("qwen2", 151936, 896, 4864, 24, 14, 2, **_QWEN, **_TIED)
    ),
    "qwen2.5-1.5b": Preset(
        "Qwen/Qwen2.5-1.5B", _hf("qwen2", 151936, 1536, 8960, 28, 12, 2, **_QWEN, **_TIED)
    ),
    "qwen2.5-7b": Preset("Qwen/Qwen2.5-7B", _hf("qwen2", 152064, 3584, 18944, 28, 28, 4, **_QWEN)),
    "qwen3-0.6b": Preset(
        "Qwen/Qwen3-0.6B", _hf("qwen3", 151936, 1024, 3072, 28, 16, 8, **_QWEN3, **_TIED)
    ),
    "qwen3-8b": Preset("Qwen/Qwen3-8B", _hf("qwen3", 151936, 4096, 12288, 36, 32, 8, **_QWEN3)),
}
