"""How a model is trained: what is learned, in which format the rest is held, and what the
optimizer keeps. In the order in which they are preferred.
"""

from __future__ import annotations

from dataclasses import dataclass

LORA_RANK = 16


@dataclass(frozen=True)
class Keeps:
    """Bytes that an optimizer keeps for a weight beside the weight and its gradient: two moments
    and, of a weight in half precision, a copy in float32.
    """

    moments: float
    master: float = 0


FP32 = 4
BLOCK = 256  # 8-bit moments that share a float32 scale
KEEPS = {
    "adamw": Keeps(moments=2 * FP32, master=FP32),
    # These two round bf16 weights at random: without it an update at lr 1e-6 would not move them.
    "adamw-bf16": Keeps(moments=2 * 2),
    "adamw-8bit": Keeps(moments=2 * (1 + FP32 / BLOCK)),
}
# Bytes of a frozen weight, and of the scale of its row.
FORMATS = {"fp8": (1, FP32), "int8": (1, FP32)}


@dataclass(frozen=True)
class Recipe:
    """optimizer: a name in KEEPS. lora_rank 0: all weights are learned; else `base_dtype` is the
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
    def keeps(self) -> Keeps:
        return KEEPS[self.optimizer]

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

    def learned_width(self, width: int) -> int:
        """Bytes of a learned weight of a model of `width`: factors of LoRA are float32."""
        return FP32 if self.lora_rank else width

    def gradient_bytes(self, width: int, micro_batches: int, shard: bool) -> float:
        """Of a learned weight: of a single micro-batch as wide as the weight, else a float32 sum,
        beside which sharded ranks have those of the last micro-batch.
        """
        own = self.learned_width(width)
        if micro_batches == 1 or own == FP32:
            return own
        return FP32 + own * shard

    def optimizer_bytes(self, width: int) -> float:
        """Of a learned weight: moments and master."""
        half = self.learned_width(width) < FP32
        return self.keeps.moments + self.keeps.master * half


def recipes(dtype: str, fp8: bool, rank: int = LORA_RANK, optimizer: str = "adamw") -> list[Recipe]:
    """Those for a model of this dtype on a device that multiplies fp8 or not. rank, optimizer: of
    the adapters. float16 has too few exponents to round at random in, and for a quantised
    base.
    """
    lora = Recipe(optimizer, rank)
    if dtype == "float16":
        return [Recipe(), lora]
    formats = sorted(FORMATS, key=lambda name: (name == "fp8") != fp8)
    quantised = [Recipe(optimizer, rank, name) for name in formats]
    return [*(Recipe(name) for name in KEEPS), lora, *quantised]
