"""Rotary frequencies with the scalings found in Llama, Mistral and Qwen configurations.

linear: f / factor. llama3: low frequencies divided by the factor, high ones kept, a blend between
(Llama 3.1 model card). yarn: the same idea by number of rotations, with an attention factor (arXiv
2309.00071, eq. 16, 23).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .config import ModelConfig, ModelError


def rope_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Frequencies [head_dim / 2] fp32 in radians per token, and the factor on cos and sin."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float()
    base = 1.0 / (config.rope_theta ** (half / config.head_dim))
    scaling = config.rope_scaling
    if scaling is None:
        return base, 1.0
    try:
        return _SCALINGS[scaling["rope_type"]](base, config, scaling)
    except KeyError as error:
        raise ModelError(
            f"config.json: rope scaling {scaling['rope_type']!r} lacks {error.args[0]!r}"
        ) from None


def _linear(base: Tensor, config: ModelConfig, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    return base / scaling["factor"], 1.0


def _llama3(base: Tensor, config: ModelConfig, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / base
    blend = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * base / scaling["factor"] + blend * base, 1.0


def _yarn(base: Tensor, config: ModelConfig, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    factor = scaling["factor"]
    original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
    dim = config.head_dim

    def dimension_of(rotations: float) -> float:
        return (dim * math.log(original / (rotations * 2 * math.pi))) / (
            2 * math.log(config.rope_theta)
        )

    low = dimension_of(scaling.get("beta_fast") or 32)
    high = dimension_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2).float() - low) / max(high - low, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return base / factor * (1 - keep) + base * keep, float(attention)


_SCALINGS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
