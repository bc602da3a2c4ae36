"""One decoder for all families, its attention contexts, and its weights in and out."""

from . import chat
from .config import ModelConfig, ModelError
from .context import Context, PackedContext
from .decoder import Model, empty_model, random_model
from .fp8 import Fp8Linear, quantise_linears, random_fp8_model
from .load import find_folder, load_model, read_config, resolve_device, resolve_dtype
from .presets import PRESETS, Preset
from .reward_model import RewardModel, load_reward_model, reward_scores, with_score_head

__all__ = [
    "PRESETS",
    "Context",
    "Fp8Linear",
    "Model",
    "ModelConfig",
    "ModelError",
    "PackedContext",
    "Preset",
    "RewardModel",
    "chat",
    "empty_model",
    "find_folder",
    "load_model",
    "load_reward_model",
    "quantise_linears",
    "random_fp8_model",
    "random_model",
    "read_config",
    "resolve_device",
    "resolve_dtype",
    "reward_scores",
    "with_score_head",
]
