"""One decoder for all families, its attention contexts, and its weights in and out."""

from . import chat
from .config import ModelConfig, ModelError
from .context import Context, PackedContext
from .decoder import Model, empty_model, random_model
from .fp8 import Fp8Linear, quantise_linears, random_fp8_model
from .int8 import Int8Linear
from .load import (
    find_folder,
    load_merged,
    load_model,
    read_config,
    resolve_device,
    resolve_dtype,
)
from .lora import (
    Adapter,
    LoraConfig,
    add_lora,
    has_lora,
    lora_parameters,
    merge_lora,
    remove_lora,
    trainable_parameters,
)
from .presets import PRESETS, Preset, hub_id
from .reward_model import RewardModel, load_reward_model, reward_scores, with_score_head

__all__ = [
    "PRESETS",
    "Adapter",
    "Context",
    "Fp8Linear",
    "Int8Linear",
    "LoraConfig",
    "Model",
    "ModelConfig",
    "ModelError",
    "PackedContext",
    "Preset",
    "RewardModel",
    "add_lora",
    "chat",
    "empty_model",
    "find_folder",
    "has_lora",
    "hub_id",
    "load_merged",
    "load_model",
    "load_reward_model",
    "lora_parameters",
    "merge_lora",
    "quantise_linears",
    "random_fp8_model",
    "random_model",
    "read_config",
    "remove_lora",
    "resolve_device",
    "resolve_dtype",
    "reward_scores",
    "trainable_parameters",
    "with_score_head",
]
