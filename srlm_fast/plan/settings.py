"""What a run's own options say of its recipe and its mesh, read at this one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from srlm_fast.config import Config, get
from srlm_fast.options import OPTIONS

from .recipe import FORMATS, KEEPS, Recipe


@dataclass(frozen=True)
class Settings:
    recipe: Recipe
    checkpointing: bool
    tensor: int
    shard: str  # "yes", "no", or "auto" where it would not fit else
    kv_gb: float | None  # None: the sampler's default


def settings_of(config: Config) -> Settings:
    optimizer, base = value(config, "--optimizer", "adamw"), value(config, "--base-dtype", "model")
    recipe = Recipe(
        optimizer if optimizer in KEEPS else "adamw",
        int(value(config, "--lora-rank", 0) or 0),
        base if base in FORMATS else "model",
    )
    return Settings(
        recipe,
        value(config, "--activation-checkpointing", "no") in ("yes", True),
        int(value(config, "--tensor-parallel", 1) or 1),
        value(config, "--shard", "auto"),
        value(config, "--kv-gb", None),
    )


def value(config: Config, name: str, default: Any) -> Any:
    """Of the option of that name; the default where there is no such option."""
    path = next((option.path for option in OPTIONS if option.name == name), None)
    return default if path is None else get(config, path)
