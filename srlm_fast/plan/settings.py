"""What a run's own options say of its recipe and its mesh, read at this one place."""

from __future__ import annotations

from dataclasses import dataclass

from srlm_fast.config import Config

from .mesh import Mesh
from .recipe import Recipe
from .shape import adapter_rank


@dataclass(frozen=True)
class Settings:
    """shard: "yes", "no", or "auto" where it would not fit else. kv_gb None: the sampler's own."""

    recipe: Recipe
    checkpointing: bool
    tensor: int
    shard: str
    kv_gb: float | None

    def allows(self, recipe: Recipe) -> bool:
        """Whether what was asked for beside the defaults leaves this recipe to be chosen."""
        own = self.recipe
        return (
            (not own.lora_rank or own.lora_rank == recipe.lora_rank)
            and own.optimizer in ("adamw", recipe.optimizer)
            and own.base_dtype in ("model", recipe.base_dtype)
        )

    def allows_mesh(self, mesh: Mesh) -> bool:
        tensor = self.tensor in (1, mesh.tensor)
        return tensor and self.shard in ("auto", "yes" if mesh.shard else "no")


FREE = Settings(Recipe(), False, 1, "auto", None)


def settings_of(config: Config) -> Settings:
    rank = adapter_rank(config.model) or config.lora.rank
    return Settings(
        Recipe(config.dpo.optimizer, rank, config.lora.base_dtype or "model"),
        config.dpo.activation_checkpointing,
        config.tensor_parallel,
        config.shard,
        config.kv_gb,
    )
