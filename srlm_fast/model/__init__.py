"""One decoder for all families, its attention contexts, and its weights in and out."""

from . import chat
from .config import ModelConfig, ModelError
from .context import Context, PackedContext
from .decoder import Model, empty_model, random_model
from .load import find_folder, load_model, read_config, resolve_device, resolve_dtype
from .presets import PRESETS, Preset

__all__ = [
    "PRESETS",
    "Context",
    "Model",
    "ModelConfig",
    "ModelError",
    "PackedContext",
    "Preset",
    "chat",
    "empty_model",
    "find_folder",
    "load_model",
    "random_model",
    "read_config",
    "resolve_device",
    "resolve_dtype",
]
