"""Kinds of devices, and what of a data sheet's rates a device was measured to give."""

from __future__ import annotations

from dataclasses import dataclass

from .units import GB

# One H200, bf16: a large matmul runs at 790 of the sheet's 989 TFLOP/s, a copy at 4.3 of 4.8 TB/s.
# The other kinds are taken to give the same shares of theirs.
MATH_SHARE = 790 / 989
COPY_SHARE = 4.3 / 4.8


@dataclass(frozen=True)
class Card:
    """A kind of device. memory_bytes: what a process can have of it. Rates are the data sheet's:
    bytes/s of the memory, FLOP/s in bfloat16 (dense), and bytes/s that an all-reduce moves between
    two of a node. fp8: whether it multiplies fp8.
    """

    name: str
    memory_bytes: float
    memory_rate: float
    math_rate: float
    link_rate: float = 20 * GB
    fp8: bool = False

    @property
    def copy(self) -> float:
        """Bytes/s of a copy."""
        return COPY_SHARE * self.memory_rate

    @property
    def math(self) -> float:
        """FLOP/s of a large matmul in bfloat16."""
        return MATH_SHARE * self.math_rate


# Bytes of H100 and H200 are those that the driver reports (79 and 139 GiB), which are more than the
# names say; those of the others are the names'.
CARDS = {
    card.name.lower(): card
    for card in (
        Card("A100-40", 40 * GB, 1.555e12, 312e12, 250 * GB),
        Card("A100-80", 80 * GB, 2.039e12, 312e12, 250 * GB),
        Card("L40S-48", 48 * GB, 0.864e12, 362e12, fp8=True),
        Card("RTX4090-24", 24 * GB, 1.008e12, 165e12, fp8=True),
        Card("H100-80", 85 * GB, 3.35e12, 989e12, 400 * GB, fp8=True),
        Card("H200-141", 149 * GB, 4.8e12, 989e12, 400 * GB, fp8=True),
        Card("B200-180", 180 * GB, 7.7e12, 2250e12, 800 * GB, fp8=True),
    )
}


def find_card(name: str) -> Card | None:
    """By its name, with or without its size: "h100-80", "H200"; the smallest of a kind."""
    name = name.lower()
    whole = CARDS.get(name)
    return whole or next((c for key, c in CARDS.items() if key.partition("-")[0] == name), None)
