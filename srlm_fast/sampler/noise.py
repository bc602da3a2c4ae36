"""The counter-based noise: a pure function of (seed, prompt, sample, position).

The same request meets the same noise alone, in any batch and after any interruption. csrc/hash.hpp
is the same text.
"""

from __future__ import annotations

from collections.abc import Sequence

MASK = 2**64 - 1


def mix64(x: int) -> int:
    """The splitmix64 step (Steele, Lea, Flood 2014): a bijection of 64-bit words with full
    avalanche.
    """
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hash_tokens(start: int, tokens: Sequence[int]) -> int:
    """Hash of a token sequence, from `start`."""
    h = mix64(start ^ len(tokens))
    for token in tokens:
        h = mix64(h ^ token)
    return h


def noise_key(seed: int, prompt_hash: int, sample: int) -> int:
    """The key of one sample's noise."""
    return mix64(mix64((seed & MASK) ^ 0x5851F42D4C957F2D) ^ prompt_hash ^ mix64(sample))


def noise_uniform(key: int, position: int) -> float:
    """Uniform in [0, 1) with 53 bits for the token at `position`."""
    return (mix64(key ^ mix64(position)) >> 11) * 2.0**-53
