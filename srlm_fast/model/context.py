"""What differs between training and sampling: how a token sees the tokens before it.

The decoder calls `context.attend` once per layer with this step's queries, keys and values. In
training they come from packed segments (here); in sampling from page tables (`srlm_fast.sampler`).

Shape letters: T tokens, S segments, L longest segment, H heads, G key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.segment_attention import Segments, segment_attention_reference


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
    Without parents the segments are laid out as [S, L] on the way through attention; the linear
    layers never see padding.
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
        self.num_segments, self.longest = len(lengths), max(lengths)
        length_S = torch.tensor(lengths, dtype=torch.int64)
        start_S = length_S.cumsum(0) - length_S
        segment_T = torch.repeat_interleave(torch.arange(len(lengths)), length_S)
        place_T = torch.arange(int(length_S.sum())) - start_S[segment_T]
        first_S = torch.tensor(self.segments.first_positions)
        self.positions = (place_T + first_S[segment_T]).to(device)
        self._slot_T = (segment_T * self.longest + place_T).to(device)
        self._dense = min(lengths) == self.longest
        self._masks: dict[int, Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.segments.has_parents:
            scale, window = q.shape[-1] ** -0.5, self.windows[layer]
            return segment_attention_reference(q, k, v, self.segments, scale, window)
        mask = self._mask(self.windows[layer], q.device)
        # Padding sits behind the real tokens of its segment, so causality alone hides it from them.
        out = F.scaled_dot_product_attention(
            self._pad(q),
            self._pad(k),
            self._pad(v),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out = out.transpose(1, 2).reshape(-1, *q.shape[1:])
        return out if self._dense else out.index_select(0, self._slot_T)

    def _pad(self, x: Tensor) -> Tensor:
        """[T, N, K] -> [S, N, L, K]."""
        if not self._dense:
            rows = self.num_segments * self.longest
            x = x.new_zeros(rows, *x.shape[1:]).index_copy(0, self._slot_T, x)
        return x.view(self.num_segments, self.longest, *x.shape[1:]).transpose(1, 2)

    def _mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """[L, L], True where a query may look: the last `window` positions up to its own. None:
        plain causal.
        """
        if window is None or window >= self.longest:
            return None
        if window not in self._masks:
            position = torch.arange(self.longest, device=device)
            distance = position[:, None] - position[None, :]
            self._masks[window] = (distance >= 0) & (distance < window)
        return self._masks[window]
