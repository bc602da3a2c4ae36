"""What differs between training and sampling: how a token sees the tokens before it.

The decoder calls `context.attend` once per layer with this step's queries, keys and values. In
training they come from packed segments (here); in sampling from page tables (`srlm_fast.sampler`).

Shape letters: T tokens, S segments, H heads, G key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..kernels.segment_attention import Segments, segment_attention


class Context(Protocol):
    """Attention of one step. q [T, H, K] and k [T, G, K] are already rotated; v [T, G, K]; scale
    1/sqrt(K).
    """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """-> [T, H, K] in the dtype of q."""
        ...


@runtime_checkable
class FusedContext(Protocol):
    """A context that norms and rotates the heads itself, in the launch that stores them."""

    def attend_qkv(
        self,
        layer: int,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor:
        """qkv [T, (H + 2 G) K] as projected -> [T, H, K]. q_norm, k_norm [K], or none."""
        ...


class PackedContext:
    """Segments one behind the other in a flat stream, causal inside each, blind to each other but
    for their parents. Differentiable.

    lengths: tokens of each segment, T in all. windows: attention window per layer
    (`ModelConfig.windows`). parents: the earlier segment, such as a prompt, that each goes on
    from, -1 for none (`kernels/segment_attention.py`).
    """

    def __init__(
        self,
        lengths: Sequence[int],
        windows: Sequence[int | None],
        device: torch.device | str = "cpu",
        parents: Sequence[int] | None = None,
    ) -> None:
        self.segments = Segments(lengths, parents)
        self.windows = windows
        length_S = torch.tensor(lengths)
        shift_S = torch.tensor(self.segments.first_positions) - torch.tensor(self.segments.starts)
        shift_T = torch.repeat_interleave(shift_S, length_S)
        self.positions = (torch.arange(len(shift_T)) + shift_T).to(device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return segment_attention(q, k, v, self.segments, q.shape[-1] ** -0.5, self.windows[layer])
