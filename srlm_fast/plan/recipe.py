"""How a model is trained: what is learned, in which format the rest is held, and what the
optimizer keeps. In the order in which they are preferred.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from srlm_fast.train.config import OPTIMIZERS
from srlm_fast.train.optimizer import bytes_per_parameter

LORA_RANK = 16
FP32 = 4
# Bytes of a frozen weight, and of the scale of its row.
FORMATS = {"fp8": (1, FP32), "int8": (1, FP32)}


@dataclass(frozen=True)
class Recipe:
    """optimizer: one of OPTIMIZERS. lora_rank 0: all weights are learned; else `base_dtype` is the
    format of the frozen ones' matrices, "model" for the model's own.
    """

    optimizer: str = "adamw"
    lora_rank: int = 0
    base_dtype: str = "model"

    @property
    def name(self) -> str:
        if not self.lora_rank:
            return f"full, {self.optimizer}"
        base = "" if self.base_dtype == "model" else f" over {self.base_dtype}"
        own = "" if self.optimizer == "adamw" else f", {self.optimizer}"
        return f"LoRA r={self.lora_rank}{base}{own}"

    @property
    def kind(self) -> str:
        return "LoRA" if self.lora_rank else "full"

    @property
    def has_format(self) -> bool:
        """Whether the frozen matrices are held in other bytes than the model's."""
        return bool(self.lora_rank) and self.base_dtype in FORMATS

    def options(self) -> list[str]:
        """Of the command line, those that are not the defaults."""
        found = [] if self.optimizer == "adamw" else ["--optimizer", self.optimizer]
        if self.lora_rank:
            found += ["--lora-rank", str(self.lora_rank)]
        if self.has_format:
            found += ["--base-dtype", self.base_dtype]
        return found

    def trained_bytes(self, dtype: torch.dtype, summed: bool, shard: bool) -> tuple[float, float]:
        """(gradient, optimizer) of a learned weight of a model of `dtype`; factors of LoRA are
        float32. summed: over micro-batches or data ranks, in float32; beside it sharded ranks have
        the gradients of the last micro-batch.
        """
        own = torch.float32 if self.lora_rank else dtype
        number = 2 if summed else 1
        gradient, state = bytes_per_parameter(self.optimizer, own, micro_batches=number)
        last = own.itemsize if shard and gradient > own.itemsize else 0
        return gradient + last, state


def recipes(dtype: str, fp8: bool, rank: int = LORA_RANK, optimizer: str = "adamw") -> list[Recipe]:
    """Those for a model of this dtype on a device that multiplies fp8 or not. rank, optimizer: of
    the adapters. float16 has too few exponents for a quantised base.
    """
    known = [*(Recipe(name) for name in OPTIMIZERS), Recipe(optimizer, rank)]
    if dtype == "float16":
        return known
    formats = sorted(FORMATS, key=lambda name: (name == "fp8") != fp8)
    return known + [Recipe(optimizer, rank, name) for name in formats]
