"""Attention of a packed stream of segments: causal inside each, and behind a prompt they share.

A segment s may have a parent: a row of s sees all of its parent's rows, then its own up to itself,

    out_i = sum_j softmax_j(scale q_i . k_j) v_j    over j in parent(s), then j in s with j <= i

so that a prompt which several responses share is in the stream, and computed, once (prefix sharing,
arXiv 2410.20305). A parent has no parent itself: trees of depth one. With a window w a row sees the
last w positions up to its own, where a child's positions go on behind its parent's.

Shape letters: T rows, S segments, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Segments:
    """How a stream of T rows is cut, on the CPU.

    lengths [S]: rows of each segment, one behind the other in the stream. parents [S]: the number
    of each segment's parent, -1 for none; None: no segment has one. Raises ValueError.
    """

    def __init__(self, lengths: Sequence[int], parents: Sequence[int] | None = None) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths: {list(lengths)}, wanted at least one segment, none empty")
        self.lengths = list(lengths)
        self.parents = [-1] * len(lengths) if parents is None else list(parents)
        if len(self.parents) != len(self.lengths):
            raise ValueError(f"parents: {len(self.parents)}, wanted {len(self.lengths)}")
        for index, parent in enumerate(self.parents):
            if not (parent == -1 or (0 <= parent < index and self.parents[parent] == -1)):
                raise ValueError(
                    f"parents[{index}]: {parent}, wanted -1 or an earlier segment without a parent"
                )
        self.starts = [sum(self.lengths[:i]) for i in range(len(self.lengths))]
        self.has_parents = any(parent >= 0 for parent in self.parents)

    @property
    def first_positions(self) -> list[int]:
        """[S] position of each segment's first row."""
        return [0 if p < 0 else self.lengths[p] for p in self.parents]


def segment_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None = None
) -> Tensor:
    """q [T, H, K], k and v [T, G, K] -> [T, H, K]; softmax in fp32, in fp64 for fp64."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group, outs = q.shape[1] // k.shape[1], []
    for start, length, parent in zip(
        segments.starts, segments.lengths, segments.parents, strict=True
    ):
        rows = torch.arange(start, start + length)
        before = 0 if parent < 0 else segments.lengths[parent]
        if before:
            first = segments.starts[parent]
            rows = torch.cat((torch.arange(first, first + before), rows))
        keys, values = (x[rows].repeat_interleave(group, 1).to(wide) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[start : start + length].to(wide), keys) * scale
        position = torch.arange(before + length, device=q.device)
        distance = position[before:, None] - position
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        outs.append(torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype))
    return torch.cat(outs)
